//! A disk that may lose power: which files can be there afterwards, given the calls that were made.
//!
//! What an fsync covered is there. Of everything else nothing is promised: bytes of a file that was not fsynced
//! may be missing, short, or zeros; a name made, moved or removed in a directory that was not fsynced may be as
//! it was before. Within one file and within one directory changes are lost from the end, and a rename is
//! lost or kept as one. The files are known by identity, so a directory's loss takes what is in it along.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::strace::Call;
use change::{Id, Made, Node, ROOT, apply, walk};
use recorder::Recorder;
pub use tree::{Tree, digest, read_tree, write_tree};

mod change;
mod recorder;
mod tree;

/// What becomes of changes that no fsync covered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    Nothing,
    Everything,
    /// Names without their content: files of length zero.
    Content,
    /// Names with a part of their content.
    HalfOfContent,
    /// Names with zeros for content.
    ContentZeroed,
    /// Content without names.
    Names,
    /// All changes of the n-th file or directory that has any, and no others.
    Just(usize),
    /// All changes but those of the n-th.
    AllBut(usize),
    /// Any of these, file by file and directory by directory.
    Random(u64),
}

/// Everything that was done to a directory tree.
pub struct Recording {
    nodes: Vec<Node>,
    made: Vec<Made>,
    calls: usize,
}

impl Recording {
    /// `before` is what was at `root` before the calls, all of it safe.
    pub fn new(root: &Path, before: &Tree, calls: &[Call]) -> Self {
        let mut recorder = Recorder::new(root, before);
        let start = recorder.live.clone();
        for (number, call) in calls.iter().enumerate() {
            recorder.number = number;
            recorder.take(call);
        }
        let mut nodes = start;
        // Files that were made later begin empty.
        nodes.extend(recorder.live[nodes.len()..].iter().map(|node| match node {
            Node::File(_) => Node::File(Vec::new()),
            Node::Directory(_) => Node::Directory(BTreeMap::new()),
        }));
        Self {
            nodes,
            made: recorder.made,
            calls: calls.len(),
        }
    }

    /// Moments at which the power can fail: after each call.
    pub fn moments(&self) -> usize {
        self.calls + 1
    }

    /// Files and directories with changes that no fsync covered at that moment.
    pub fn pending(&self, moment: usize) -> Vec<usize> {
        let made = self.made.iter().take_while(|made| made.call < moment);
        let pending = made.filter(|made| made.safe.is_none_or(|safe| safe >= moment));
        let mut subjects: Vec<Id> = pending.map(|made| made.change.subject()).collect();
        subjects.sort_unstable();
        subjects.dedup();
        subjects
    }

    /// The files after the power failed when `moment` calls had been made.
    pub fn after(&self, moment: usize, loss: Loss) -> Tree {
        let mut nodes = self.nodes.clone();
        let pending = self.pending(moment);
        let mut random = StdRng::seed_from_u64(if let Loss::Random(seed) = loss {
            seed
        } else {
            0
        });
        // How many of its changes each keeps, and which part of the last one.
        let mut kept: HashMap<Id, (usize, f64)> = HashMap::new();
        for subject in &pending {
            let all = self
                .made
                .iter()
                .filter(|made| made.change.subject() == *subject);
            let number = random.random_range(0..=all.count());
            kept.insert(*subject, (number, random.random_range(0.0..1.0)));
        }
        for made in self.made.iter().take_while(|made| made.call < moment) {
            let change = &made.change;
            if made.safe.is_some_and(|safe| safe < moment) {
                apply(&mut nodes, change, 1.0, false);
                continue;
            }
            let content = change.is_content();
            match loss {
                Loss::Nothing => apply(&mut nodes, change, 1.0, false),
                Loss::Everything => {}
                Loss::Content if content => {}
                Loss::HalfOfContent if content => apply(&mut nodes, change, 0.5, false),
                Loss::ContentZeroed if content => apply(&mut nodes, change, 0.0, true),
                Loss::Content | Loss::HalfOfContent | Loss::ContentZeroed => {
                    apply(&mut nodes, change, 1.0, false);
                }
                Loss::Names if content => apply(&mut nodes, change, 1.0, false),
                Loss::Names => {}
                Loss::Just(n) if pending[n] == change.subject() => {}
                Loss::AllBut(n) if pending[n] != change.subject() => {}
                Loss::Just(_) | Loss::AllBut(_) => apply(&mut nodes, change, 1.0, false),
                Loss::Random(_) => {
                    let (left, part) = kept.get_mut(&change.subject()).expect("counted above");
                    if *left == 0 {
                        continue;
                    }
                    *left -= 1;
                    let torn = *left == 0 && content && random.random_bool(0.5);
                    let part = if torn { *part } else { 1.0 };
                    apply(&mut nodes, change, part, random.random_bool(0.5));
                }
            }
        }
        let mut tree = Tree::new();
        walk(&nodes, ROOT, Path::new(""), &mut tree);
        tree
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    /// `new` written beside `a` and renamed over it, with these fsyncs left out.
    fn replaced(file_synced: bool, directory_synced: bool) -> Recording {
        let root = Path::new("/s");
        let before = Tree::from([
            (PathBuf::new(), None),
            (PathBuf::from("a"), Some(b"old".to_vec())),
        ]);
        let path = |name: &str| root.join(name);
        let mut calls = vec![
            Call::Open {
                path: path("t"),
                create: true,
                truncate: false,
            },
            Call::Write {
                path: path("t"),
                at: None,
                bytes: b"new".to_vec(),
            },
        ];
        if file_synced {
            calls.push(Call::Sync(path("t")));
        }
        calls.push(Call::Rename(path("t"), path("a")));
        if directory_synced {
            calls.push(Call::Sync(root.to_owned()));
        }
        Recording::new(root, &before, &calls)
    }

    fn found(recording: &Recording) -> Vec<Vec<u8>> {
        let losses = [
            Loss::Nothing,
            Loss::Everything,
            Loss::Content,
            Loss::HalfOfContent,
        ];
        let more = [Loss::ContentZeroed, Loss::Names];
        let random = (0..50).map(Loss::Random);
        let mut found: Vec<Vec<u8>> = losses
            .into_iter()
            .chain(more)
            .chain(random)
            .map(|loss| recording.after(recording.moments() - 1, loss))
            .map(|tree| tree[Path::new("a")].clone().expect("a file"))
            .collect();
        found.sort();
        found.dedup();
        found
    }

    #[test]
    fn only_what_was_fsynced_is_sure_to_be_there() {
        assert_eq!(found(&replaced(true, true)), [b"new"]);
        assert_eq!(found(&replaced(true, false)), [b"new", b"old"]);
        let torn = found(&replaced(false, true));
        assert!(torn.contains(&Vec::new()) && torn.contains(&b"new".to_vec()));
        assert!(!torn.contains(&b"old".to_vec()));
    }
}
