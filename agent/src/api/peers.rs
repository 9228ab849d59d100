//! Which local users the Unix socket answers.
//!
//! The kernel says who connected (SO_PEERCRED); the configuration says who may. Users and groups are
//! resolved when the door opens, so a mistyped name stops the start and not some later request. A peer is
//! let in if its user is listed, or if a listed group is its primary group or one that the system's user
//! database gives that user. The database may be a network directory that hangs: it is asked on threads of its
//! own, a few at most, for a limited time, and what it said is remembered for a minute.

use std::collections::{BTreeSet, HashMap};
use std::ffi::CString;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::unistd::{Gid, Group, Uid, User, getgrouplist};
use tokio::net::unix::UCred;
use tokio::sync::{Semaphore, oneshot};

use super::auth::Gate;
use crate::config::UnixDoor;

/// Answers of the user database are good for this long.
const REMEMBER: Duration = Duration::from_secs(60);
/// And that it gave none, for this long.
const REMEMBER_FAILURE: Duration = Duration::from_secs(5);
/// Questions to the user database at once, and the time for one.
const LOOKUPS: usize = 2;
const LOOKUP_TIME: Duration = Duration::from_secs(5);
/// Users remembered at once; beyond that all are forgotten.
const REMEMBERED_USERS: usize = 1024;

/// The users and groups that may ask.
#[derive(Debug)]
pub struct Peers {
    users: BTreeSet<u32>,
    groups: BTreeSet<u32>,
    /// Until when an answer is good, and the answer.
    memory: Mutex<HashMap<u32, (Instant, bool)>>,
    lookups: Arc<Semaphore>,
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
            lookups: Arc::new(Semaphore::new(LOOKUPS)),
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
            && let Some((until, member)) = memory.get(&uid)
            && Instant::now() < *until
        {
            return *member;
        }
        let looked_up = tokio::time::timeout(LOOKUP_TIME, self.look_up(uid)).await;
        let looked_up = looked_up.unwrap_or_else(|_| {
            bail!("the user database did not answer within {LOOKUP_TIME:?}");
        });
        let (member, good_for) = match looked_up {
            Ok(groups) => (groups.iter().any(|g| self.groups.contains(g)), REMEMBER),
            Err(error) => {
                tracing::warn!(uid, "cannot look up the groups of a local user: {error:#}");
                (false, REMEMBER_FAILURE)
            }
        };
        if let Ok(mut memory) = self.memory.lock() {
            if memory.len() >= REMEMBERED_USERS {
                memory.clear();
            }
            memory.insert(uid, (Instant::now() + good_for, member));
        }
        member
    }

    async fn look_up(&self, uid: u32) -> anyhow::Result<Vec<u32>> {
        let turn = Arc::clone(&self.lookups).acquire_owned().await?;
        let (sender, receiver) = oneshot::channel();
        std::thread::Builder::new()
            .name("user-lookup".to_owned())
            .spawn(move || {
                // The turn is over when the database has answered, though nobody may listen any more.
                let _turn = turn;
                let _ = sender.send(groups_of(uid));
            })?;
        receiver.await?
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
