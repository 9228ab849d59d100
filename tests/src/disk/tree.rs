//! Files and directories as they are on a real disk.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use edgeward_models::Digest;

/// Files and directories by path; directories have no content.
pub type Tree = BTreeMap<PathBuf, Option<Vec<u8>>>;

/// What is at `root`.
pub fn read_tree(root: &Path) -> Tree {
    fn visit(root: &Path, path: &Path, tree: &mut Tree) {
        let full = root.join(path);
        if !full.is_dir() {
            let content = std::fs::read(&full).expect("read a file");
            tree.insert(path.to_owned(), Some(content));
            return;
        }
        tree.insert(path.to_owned(), None);
        for entry in std::fs::read_dir(&full)
            .expect("read a directory")
            .flatten()
        {
            visit(root, &path.join(entry.file_name()), tree);
        }
    }
    let mut tree = Tree::new();
    visit(root, Path::new(""), &mut tree);
    tree
}

/// Makes these files at `root`, readable by their owner alone.
pub fn write_tree(root: &Path, tree: &Tree) {
    use std::os::unix::fs::PermissionsExt;
    for (path, content) in tree {
        let full = root.join(path);
        let mode = match content {
            None => {
                std::fs::create_dir_all(&full).expect("make a directory");
                0o700
            }
            Some(content) => {
                std::fs::write(&full, content).expect("write a file");
                0o600
            }
        };
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(&full, permissions).expect("set permissions");
    }
}

/// Tells trees apart.
pub fn digest(tree: &Tree) -> Digest {
    let mut bytes = Vec::new();
    for (path, content) in tree {
        bytes.extend(path.as_os_str().as_encoded_bytes());
        bytes.push(0);
        let content = content.as_ref().map(|content| Digest::of(content).to_hex());
        bytes.extend(content.unwrap_or_default().as_bytes());
        bytes.push(0);
    }
    Digest::of(&bytes)
}
