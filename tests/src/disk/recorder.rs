//! Follows calls on a live tree and notes what each changed, and what an fsync made safe.

use std::collections::BTreeMap;
use std::path::Path;

use super::change::{Change, Id, Made, Node, ROOT, apply};
use super::tree::Tree;
use crate::strace::Call;

/// Follows calls on a live tree.
pub struct Recorder<'a> {
    root: &'a Path,
    pub live: Vec<Node>,
    pub made: Vec<Made>,
    pub number: usize,
}

impl<'a> Recorder<'a> {
    pub fn new(root: &'a Path, before: &Tree) -> Self {
        let mut recorder = Self {
            root,
            live: vec![Node::Directory(BTreeMap::new())],
            made: Vec::new(),
            number: 0,
        };
        for (path, content) in before {
            if !path.as_os_str().is_empty() {
                let node = content
                    .clone()
                    .map_or_else(|| Node::Directory(BTreeMap::new()), Node::File);
                recorder.add(&root.join(path), node);
            }
        }
        // What was there before is no change.
        recorder.made.clear();
        recorder
    }

    pub fn take(&mut self, call: &Call) {
        match call {
            Call::Open {
                path,
                create,
                truncate,
            } => match self.find(path) {
                None if *create => self.add(path, Node::File(Vec::new())),
                None => panic!("{} was opened and is not there", path.display()),
                Some(file) if *truncate => self.change(Change::Cut { file, length: 0 }),
                Some(_) => {}
            },
            Call::MakeDirectory(path) => self.add(path, Node::Directory(BTreeMap::new())),
            Call::Write { path, at, bytes } => {
                let file = self.must_find(path);
                let end = match &self.live[file] {
                    Node::File(content) => content.len(),
                    Node::Directory(_) => panic!("{} is a directory", path.display()),
                };
                let at = at.map_or(end, |at| at as usize);
                let bytes = bytes.clone();
                self.change(Change::Write { file, at, bytes });
            }
            Call::Truncate(path, length) => {
                let (file, length) = (self.must_find(path), *length as usize);
                self.change(Change::Cut { file, length });
            }
            Call::Rename(from, to) => {
                let (from, to) = (self.place(from), self.place(to));
                self.change(Change::Move { from, to });
            }
            Call::Remove(path) => {
                let (directory, name) = self.place(path);
                self.change(Change::Unname { directory, name });
            }
            Call::Sync(path) => {
                let node = self.must_find(path);
                for made in &mut self.made {
                    if made.change.subject() == node {
                        made.safe.get_or_insert(self.number);
                    }
                }
            }
        }
    }

    fn change(&mut self, change: Change) {
        apply(&mut self.live, &change, 1.0, false);
        let call = self.number;
        self.made.push(Made {
            change,
            call,
            safe: None,
        });
    }

    fn add(&mut self, path: &Path, node: Node) {
        let (directory, name) = self.place(path);
        let id = self.live.len();
        self.live.push(node);
        self.change(Change::Name {
            directory,
            name,
            node: id,
        });
    }

    fn find(&self, path: &Path) -> Option<Id> {
        let path = path.strip_prefix(self.root).expect("a path below the root");
        path.iter().try_fold(ROOT, |id, name| match &self.live[id] {
            Node::Directory(names) => names.get(name.to_str()?).copied(),
            Node::File(_) => None,
        })
    }

    fn must_find(&self, path: &Path) -> Id {
        self.find(path)
            .unwrap_or_else(|| panic!("{} is not there", path.display()))
    }

    fn place(&self, path: &Path) -> (Id, String) {
        let name = path.file_name().and_then(|name| name.to_str());
        let directory = self.must_find(path.parent().expect("a parent"));
        (directory, name.expect("a name").to_owned())
    }
}
