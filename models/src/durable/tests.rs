//! Damage, power cuts between two steps, and permissions.

use super::*;

#[test]
fn a_damaged_generation_is_told_from_an_absent_one() {
    let directory = tempfile::tempdir().expect("tempdir");
    let file = Generations::new(directory.path().join("trust"));
    assert_eq!(file.read().expect("read"), Stored::Absent);
    file.write(b"one", Access::Owner).expect("write");
    file.write(b"two", Access::Owner).expect("write");
    assert_eq!(file.read().expect("read"), Stored::Good(b"two".to_vec()));
    for damage in [&b""[..], b"zz", &[0; 68]] {
        fs::write(file.path(), damage).expect("damage");
        let before = Some(b"one".to_vec());
        assert_eq!(file.read().expect("read"), Stored::Damaged { before });
    }
    // A damaged newest generation never pushes the whole one out.
    file.write(b"three", Access::Owner).expect("write");
    fs::write(file.path(), b"junk").expect("damage");
    let before = Some(b"one".to_vec());
    assert_eq!(file.read().expect("read"), Stored::Damaged { before });
}

#[test]
fn what_cannot_be_encoded_leaves_what_is_there() {
    let directory = tempfile::tempdir().expect("tempdir");
    let file = Generations::new(directory.path().join("trust"));
    file.write(b"one", Access::Owner).expect("write");
    // JSON has no keys but texts.
    let document = std::collections::BTreeMap::from([((1, 2), 3)]);
    let refused = file.write_json(&document, Access::Owner);
    assert!(refused.is_err_and(|e| e.to_string().contains("encode")));
    assert_eq!(file.read().expect("read"), Stored::Good(b"one".to_vec()));
}

#[test]
fn a_power_cut_between_the_renames_leaves_the_generation_before() {
    let directory = tempfile::tempdir().expect("tempdir");
    let file = Generations::new(directory.path().join("trust"));
    file.write(b"one", Access::Owner).expect("write");
    fs::rename(file.path(), file.before()).expect("rename");
    assert_eq!(file.read().expect("read"), Stored::Good(b"one".to_vec()));
}

#[test]
fn permissions_are_exact_and_large_files_are_refused() {
    let directory = tempfile::tempdir().expect("tempdir");
    let path = directory.path().join("a/b/key");
    create_directory(path.parent().expect("parent")).expect("mkdir");
    write(&path, b"0123456789", Access::Owner).expect("write");
    let mode = fs::metadata(&path).expect("metadata").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(read(&path, 9).is_err());
    assert_eq!(
        read(&path, 10).expect("read").expect("there"),
        b"0123456789"
    );
    assert_eq!(read(&directory.path().join("none"), 1).expect("read"), None);
}
