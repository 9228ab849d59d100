//! Records what a program does to the files below one directory, by its system calls.
//!
//! Nothing in the program knows of it: strace writes one file per thread, with the bytes of every write and a
//! time of every call, and the files are read together here. A call that changes files and is not known here
//! is an error, so that nothing is overlooked.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::{self, Finished};

/// One call that changed files, or made a change last.
#[derive(Debug, Clone, PartialEq)]
pub enum Call {
    /// Opened for writing; what was there before is the reader's to know.
    Open {
        path: PathBuf,
        create: bool,
        truncate: bool,
    },
    MakeDirectory(PathBuf),
    /// At the end of what was written so far where no place is given.
    Write {
        path: PathBuf,
        at: Option<u64>,
        bytes: Vec<u8>,
    },
    Truncate(PathBuf, u64),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
    /// Of a file's content or a directory's names.
    Sync(PathBuf),
}

const WATCHED: &str = "open,openat,openat2,creat,write,writev,pwrite64,pwritev,pwritev2,truncate,ftruncate,\
    fallocate,copy_file_range,sendfile,splice,rename,renameat,renameat2,unlink,unlinkat,rmdir,mkdir,mkdirat,\
    link,linkat,symlink,symlinkat,fsync,fdatasync,sync_file_range,sync,syncfs";

/// Runs a command to its end. Returns what it said and what it did below `directory`, in order.
pub fn record(command: &Command, directory: &Path, scratch: &Path) -> (Finished, Vec<Call>) {
    let traces = scratch.join("trace");
    std::fs::create_dir_all(&traces).expect("make a directory");
    let mut strace = Command::new("strace");
    strace.args(["-ff", "-y", "-qq", "-s", "100000000"]);
    strace.arg("--absolute-timestamps=format:unix,precision:ns");
    strace.arg(format!("--trace={WATCHED}"));
    strace.arg("-o").arg(traces.join("thread"));
    strace.arg(command.get_program()).args(command.get_args());
    let finished = process::run(&mut strace);
    let mut lines = Vec::new();
    for file in std::fs::read_dir(&traces).expect("read").flatten() {
        let bytes = std::fs::read(file.path()).expect("read a trace");
        let text = String::from_utf8(bytes).expect("strace escapes what is not ASCII");
        lines.extend(text.lines().map(str::to_owned));
    }
    // The time is of one width, so that text sorts as numbers do.
    lines.sort();
    let calls = lines.iter().filter_map(|line| call(line, directory));
    (finished, calls.collect())
}

/// `None` for a call that failed, changed nothing, or concerns other files.
fn call(line: &str, directory: &Path) -> Option<Call> {
    let (_, line) = line.split_once(' ')?;
    let (name, rest) = line.split_once('(')?;
    let arguments = arguments(rest);
    let result = rest.rsplit_once(" = ")?.1;
    let done: i64 = result
        .split([' ', '<'])
        .next()?
        .parse()
        .ok()
        .filter(|n| *n >= 0)?;
    let below = |path: PathBuf| path.starts_with(directory).then_some(path);
    let at = |index: usize| arguments.get(index).expect(line);
    let call = match name {
        "open" | "openat" => {
            let relative = usize::from(name == "openat");
            let path = if relative == 1 {
                at(0).join(at(1))
            } else {
                at(0).path()
            };
            let (path, flags) = (below(path)?, &at(1 + relative).text);
            let writes = flags.contains("O_WRONLY") || flags.contains("O_RDWR");
            let (create, truncate) = (flags.contains("O_CREAT"), flags.contains("O_TRUNC"));
            (writes || create || truncate).then_some(Call::Open {
                path,
                create,
                truncate,
            })?
        }
        "mkdir" => Call::MakeDirectory(below(at(0).path())?),
        "mkdirat" => Call::MakeDirectory(below(at(0).join(at(1)))?),
        "write" | "pwrite64" => {
            let place = (name == "pwrite64").then(|| at(3).text.parse().expect(line));
            let bytes = at(1).bytes[..done as usize].to_vec();
            Call::Write {
                path: below(at(0).path())?,
                at: place,
                bytes,
            }
        }
        "ftruncate" => Call::Truncate(below(at(0).path())?, at(1).text.parse().expect(line)),
        "rename" => Call::Rename(below(at(0).path())?, at(1).path()),
        "renameat" | "renameat2" => Call::Rename(below(at(0).join(at(1)))?, at(2).join(at(3))),
        "unlink" | "rmdir" => Call::Remove(below(at(0).path())?),
        "unlinkat" => Call::Remove(below(at(0).join(at(1)))?),
        "fsync" | "fdatasync" => Call::Sync(below(at(0).path())?),
        // Hands bytes to the disk and promises nothing.
        "sync_file_range" => return None,
        _ => {
            let concerned = arguments.iter().any(|a| a.path().starts_with(directory));
            assert!(
                !concerned,
                "a call that this recorder does not know: {line}"
            );
            return None;
        }
    };
    Some(call)
}

/// One argument of a call: a number, a word, a string, or a descriptor with the path that it stands for.
struct Argument {
    text: String,
    bytes: Vec<u8>,
    descriptor: Option<PathBuf>,
}

impl Argument {
    fn path(&self) -> PathBuf {
        let named = || PathBuf::from(String::from_utf8_lossy(&self.bytes).into_owned());
        self.descriptor.clone().unwrap_or_else(named)
    }

    /// A path below this descriptor.
    fn join(&self, other: &Self) -> PathBuf {
        self.path().join(other.path())
    }
}

fn arguments(text: &str) -> Vec<Argument> {
    let mut arguments = Vec::new();
    let (mut rest, mut depth) = (text, 0);
    let mut current = Argument {
        text: String::new(),
        bytes: Vec::new(),
        descriptor: None,
    };
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        match c {
            '"' => rest = string(rest, &mut current.bytes),
            '<' if depth == 0 => {
                let (path, after) = rest.split_once('>').expect(text);
                current.descriptor = Some(PathBuf::from(path));
                rest = after;
            }
            ')' if depth == 0 => break,
            '[' | '{' | '(' => depth += 1,
            ']' | '}' | ')' => depth -= 1,
            ',' if depth == 0 => {
                let empty = Argument {
                    text: String::new(),
                    bytes: Vec::new(),
                    descriptor: None,
                };
                arguments.push(std::mem::replace(&mut current, empty));
            }
            ' ' => {}
            c => current.text.push(c),
        }
    }
    arguments.push(current);
    arguments
}

/// Reads a quoted string to its end; returns what follows it.
fn string<'a>(text: &'a str, bytes: &mut Vec<u8>) -> &'a str {
    let raw = text.as_bytes();
    let mut i = 0;
    while raw[i] != b'"' {
        if raw[i] != b'\\' {
            bytes.push(raw[i]);
            i += 1;
            continue;
        }
        let digits = raw[i + 1..]
            .iter()
            .take(3)
            .take_while(|b| (b'0'..=b'7').contains(b));
        let count = digits.count();
        if count > 0 {
            let number = u32::from_str_radix(&text[i + 1..i + 1 + count], 8);
            bytes.push(number.expect("an octal number") as u8);
            i += 1 + count;
            continue;
        }
        bytes.push(match raw[i + 1] {
            b'n' => b'\n',
            b't' => b'\t',
            b'r' => b'\r',
            b'v' => 0x0b,
            b'f' => 0x0c,
            other => other,
        });
        i += 2;
    }
    &text[i + 1..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_read_with_their_bytes_and_paths() {
        let root = Path::new("/s");
        let read = |line: &str| call(&format!("1.5 {line}"), root);
        let file = PathBuf::from("/s/a");
        let line = r#"pwrite64(3</s/a>, "a\0b\"\n\0377\351,)", 10, 4096) = 10"#;
        assert_eq!(
            read(line),
            Some(Call::Write {
                path: file.clone(),
                at: Some(4096),
                bytes: b"a\0b\"\n\x1f7\xe9,)".to_vec()
            })
        );
        assert_eq!(
            read(
                r#"openat(AT_FDCWD</x>, "/s/a", O_WRONLY|O_CREAT|O_EXCL|O_CLOEXEC, 0600) = 3</s/a>"#
            ),
            Some(Call::Open {
                path: file.clone(),
                create: true,
                truncate: false
            })
        );
        assert_eq!(
            read(r#"unlinkat(4</s>, "a", 0) = 0"#),
            Some(Call::Remove(file.clone()))
        );
        assert_eq!(
            read(r#"rename("/s/a", "/s/b") = 0"#),
            Some(Call::Rename(file, "/s/b".into()))
        );
        assert_eq!(
            read(r#"mkdir("/s/a", 0777) = -1 EEXIST (File exists)"#),
            None
        );
        assert_eq!(read(r#"mkdir("/t/a", 0777) = 0"#), None);
        assert_eq!(
            read(r#"fsync(5</s/a>) = 0"#),
            Some(Call::Sync("/s/a".into()))
        );
    }
}
