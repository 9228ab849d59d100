//! One change to a tree of files, by the identity of what it changes.

use std::collections::BTreeMap;
use std::path::Path;

use super::tree::Tree;

pub type Id = usize;
pub const ROOT: Id = 0;

#[derive(Debug, Clone)]
pub enum Node {
    File(Vec<u8>),
    Directory(BTreeMap<String, Id>),
}

/// A change, by identity.
#[derive(Debug, Clone)]
pub enum Change {
    Name {
        directory: Id,
        name: String,
        node: Id,
    },
    Unname {
        directory: Id,
        name: String,
    },
    Move {
        from: (Id, String),
        to: (Id, String),
    },
    Write {
        file: Id,
        at: usize,
        bytes: Vec<u8>,
    },
    Cut {
        file: Id,
        length: usize,
    },
}

impl Change {
    /// What has to be fsynced for it to last.
    pub fn subject(&self) -> Id {
        match self {
            Self::Name { directory, .. } | Self::Unname { directory, .. } => *directory,
            Self::Move { to, .. } => to.0,
            Self::Write { file, .. } | Self::Cut { file, .. } => *file,
        }
    }

    pub fn is_content(&self) -> bool {
        matches!(self, Self::Write { .. } | Self::Cut { .. })
    }
}

pub struct Made {
    pub change: Change,
    /// Number of the call that made it, and of the one after which it lasts.
    pub call: usize,
    pub safe: Option<usize>,
}

/// Makes a change, or the first `part` of its bytes; `zeros` stand for the rest.
pub fn apply(nodes: &mut [Node], change: &Change, part: f64, zeros: bool) {
    let names = |nodes: &mut [Node], id: Id, change: &mut dyn FnMut(&mut BTreeMap<String, Id>)| {
        if let Node::Directory(names) = &mut nodes[id] {
            change(names);
        }
    };
    match change {
        Change::Name {
            directory,
            name,
            node,
        } => {
            names(nodes, *directory, &mut |names| {
                names.insert(name.clone(), *node);
            });
        }
        Change::Unname { directory, name } => {
            names(nodes, *directory, &mut |names| {
                names.remove(name);
            });
        }
        Change::Move { from, to } => {
            let mut moved = None;
            names(nodes, from.0, &mut |names| moved = names.remove(&from.1));
            // If the name was lost that it had before, there is nothing to move.
            if let Some(node) = moved {
                names(nodes, to.0, &mut |names| {
                    names.insert(to.1.clone(), node);
                });
            }
        }
        Change::Write { file, at, bytes } => {
            if let Node::File(content) = &mut nodes[*file] {
                let whole = (bytes.len() as f64 * part) as usize;
                let length = if zeros { bytes.len() } else { whole };
                if content.len() < at + length {
                    content.resize(at + length, 0);
                }
                content[*at..at + whole].copy_from_slice(&bytes[..whole]);
            }
        }
        Change::Cut { file, length } => {
            if let Node::File(content) = &mut nodes[*file] {
                content.resize(*length, 0);
            }
        }
    }
}

/// Writes down what can be reached from `id`.
pub fn walk(nodes: &[Node], id: Id, path: &Path, tree: &mut Tree) {
    match &nodes[id] {
        Node::File(content) => drop(tree.insert(path.to_owned(), Some(content.clone()))),
        Node::Directory(names) => {
            tree.insert(path.to_owned(), None);
            for (name, child) in names {
                walk(nodes, *child, &path.join(name), tree);
            }
        }
    }
}
