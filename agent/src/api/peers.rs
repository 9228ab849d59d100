//! Which local users the Unix socket answers.
//!
//! The kernel says who connected (SO_PEERCRED); the configuration says who may. Users and groups are
//! resolved when the door opens, so a mistyped name stops the start and not some later request. A peer is
//! let in if its user is listed, or if a listed group is its primary group or one that the system's user
//! database gives that user. The database may be a network directory: it is asked on a thread of its own,
//! and remembered for a minute.

use std::collections::{BTreeSet, HashMap};
use std::ffi::CString;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::unistd::{Gid, Group, Uid, User, getgrouplist};
use tokio::net::unix::UCred;

use super::auth::Gate;
use crate::config::UnixDoor;

/// Answers of the user database are good for this long.
const REMEMBER: Duration = Duration::from_secs(60);
/// Users remembered at once; beyond that all are forgotten.
const REMEMBERED_USERS: usize = 1024;

/// The users and groups that may ask.
#[derive(Debug)]
pub struct Peers {
    users: BTreeSet<u32>,
    groups: BTreeSet<u32>,
    memory: Mutex<HashMap<u32, (Instant, bool)>>,
}

impl Peers {
    pub fn new(door: &UnixDoor) -> anyhow::Result<Self> {
        let users = door.allow_users.iter().map(|name| user_id(name));
        let groups = door.allow_groups.iter().map(|name| group_id(name));
        Ok(Self {
            users: users
                .collect::<anyhow::Result<_>>()
                .context("unix.allow_users")?,
            groups: groups
                .collect::<anyhow::Result<_>>()
                .context("unix.allow_groups")?,
            memory: Mutex::default(),
        })
    }

    /// The gate for one connection.
    pub async fn gate(&self, peer: UCred) -> Gate {
        if self.admits(peer).await {
            return Gate::Open;
        }
        // The agent's own probe gets its 403 like anybody, and is content with it.
        if peer.pid() != i32::try_from(std::process::id()).ok() {
            tracing::warn!(
                uid = peer.uid(),
                gid = peer.gid(),
                pid = peer.pid(),
                "local user refused"
            );
        }
        Gate::Closed(format!(
            "user {} (group {}) is not among unix.allow_users and unix.allow_groups of this device's \
             configuration",
            peer.uid(),
            peer.gid()
        ))
    }

    async fn admits(&self, peer: UCred) -> bool {
        if self.users.is_empty() && self.groups.is_empty() {
            return true;
        }
        if self.users.contains(&peer.uid()) || self.groups.contains(&peer.gid()) {
            return true;
        }
        !self.groups.is_empty() && self.is_member(peer.uid()).await
    }

    /// Whether the user database puts this user into one of the groups.
    async fn is_member(&self, uid: u32) -> bool {
        if let Ok(memory) = self.memory.lock()
            && let Some((when, member)) = memory.get(&uid)
            && when.elapsed() < REMEMBER
        {
            return *member;
        }
        let found = tokio::task::spawn_blocking(move || groups_of(uid)).await;
        let member = match found {
            Ok(Ok(groups)) => groups.iter().any(|gid| self.groups.contains(gid)),
            Ok(Err(error)) => {
                tracing::warn!(uid, "cannot look up the groups of a local user: {error:#}");
                return false;
            }
            Err(_) => return false,
        };
        if let Ok(mut memory) = self.memory.lock() {
            if memory.len() >= REMEMBERED_USERS {
                memory.clear();
            }
            memory.insert(uid, (Instant::now(), member));
        }
        member
    }
}

fn groups_of(uid: u32) -> anyhow::Result<Vec<u32>> {
    let Some(user) = User::from_uid(Uid::from_raw(uid))? else {
        // A user without an entry is in no group but the one the kernel named.
        return Ok(Vec::new());
    };
    let name = CString::new(user.name)?;
    let groups = getgrouplist(&name, user.gid)?;
    Ok(groups.into_iter().map(Gid::as_raw).collect())
}

/// The kernel shows this number for every user that it cannot name in a container.
const OVERFLOW_ID: u32 = 65534;

/// A user by name or number.
pub fn user_id(text: &str) -> anyhow::Result<u32> {
    if let Ok(number) = text.parse() {
        return not_overflow(number);
    }
    match User::from_name(text).with_context(|| format!("cannot look up user {text:?}"))? {
        Some(user) => not_overflow(user.uid.as_raw()),
        None => bail!("there is no user {text:?} on this device"),
    }
}

/// A group by name or number.
pub fn group_id(text: &str) -> anyhow::Result<u32> {
    if let Ok(number) = text.parse() {
        return not_overflow(number);
    }
    match Group::from_name(text).with_context(|| format!("cannot look up group {text:?}"))? {
        Some(group) => not_overflow(group.gid.as_raw()),
        None => bail!("there is no group {text:?} on this device"),
    }
}

fn not_overflow(id: u32) -> anyhow::Result<u32> {
    if id == OVERFLOW_ID {
        bail!(
            "{OVERFLOW_ID} (nobody, nogroup) stands for everyone whom the kernel cannot name: give the \
             service a user of its own"
        );
    }
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_resolved_and_unknown_ones_refused() {
        assert_eq!(user_id("root").expect("root"), 0);
        assert_eq!(user_id("4711").expect("number"), 4711);
        assert_eq!(group_id("root").expect("root"), 0);
        for wrong in ["no-such-user-here", "nobody", "65534", ""] {
            assert!(user_id(wrong).is_err(), "{wrong:?}");
        }
        let door = UnixDoor {
            allow_groups: vec!["no-such-group-here".to_owned()],
            ..UnixDoor::default()
        };
        let error = format!("{:#}", Peers::new(&door).expect_err("unknown"));
        assert!(error.contains("unix.allow_groups"), "{error}");
    }

    #[tokio::test]
    async fn membership_by_the_user_database_counts() {
        // Root in group root is what every machine has.
        let door = UnixDoor {
            allow_groups: vec!["root".to_owned()],
            ..UnixDoor::default()
        };
        let peers = Peers::new(&door).expect("peers");
        assert!(peers.is_member(0).await);
        assert!(!peers.is_member(3_999_999_999).await);
    }
}
