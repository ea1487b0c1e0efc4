//! User and capabilities.

use ballast_model::{Refusal, RefusalCode};
use rustix::process::{Gid, Uid, getuid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, set_capabilities, set_keep_capabilities, set_no_new_privs,
    set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use super::refused;

/// What is left of root's powers: opening disks and images whoever they belong
/// to, joining a tap to a bridge, locking memory.
const KEPT: CapabilitySet =
    CapabilitySet::DAC_OVERRIDE.union(CapabilitySet::NET_ADMIN).union(CapabilitySet::IPC_LOCK);
/// What an unprivileged user keeps: taps.
const KEPT_BY_USER: CapabilitySet = CapabilitySet::NET_ADMIN;

/// Whom to become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct User {
    uid: u32,
    gid: u32,
}

/// Reads `uid:gid`.
pub(super) fn parse_user(text: &str) -> Result<User, String> {
    let numbers = text
        .split_once(':')
        .and_then(|(uid, gid)| Some(User { uid: uid.parse().ok()?, gid: gid.parse().ok()? }));
    numbers.ok_or_else(|| format!("{text:?} is not a user and a group; write for example 998:998"))
}

/// Becomes `user` for good, in its group and no other. `/dev/kvm` is open by then; taps can still be opened.
pub(super) fn become_user(user: User) -> Result<(), Refusal> {
    if !getuid().is_root() {
        return Err(Refusal::new(
            RefusalCode::InvalidArgument,
            "only root can become another user",
            "start it as that user, or without --user",
        ));
    }
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    let become_it = || {
        set_keep_capabilities(true)?;
        set_thread_groups(&[])?;
        set_thread_res_gid(gid, gid, gid)?;
        set_thread_res_uid(uid, uid, uid)?;
        limit_capabilities(KEPT_BY_USER)
    };
    become_it().map_err(|error: rustix::io::Errno| refused("becoming another user", error))
}

/// Gives up every power that is not needed, and the way to new ones.
pub(super) fn drop_capabilities() -> Result<(), Refusal> {
    let drop_them = || {
        limit_capabilities(if getuid().is_root() { KEPT } else { KEPT_BY_USER })?;
        set_no_new_privs(true)
    };
    drop_them().map_err(|error| refused("giving up capabilities", error))
}

/// Keeps of `kept` what is there.
fn limit_capabilities(kept: CapabilitySet) -> rustix::io::Result<()> {
    let now = rustix::thread::capabilities(None)?;
    let left = now.permitted.intersection(kept);
    let sets =
        CapabilitySets { effective: left, permitted: left, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_two_numbers() {
        assert_eq!(parse_user("998:990"), Ok(User { uid: 998, gid: 990 }));
        for text in ["", "998", "a:b", "998:", ":1", "-1:1"] {
            assert!(parse_user(text).is_err(), "{text}");
        }
    }
}
