//! Resource pools, and what a VM or a pool may claim.
//!
//! A pool divides what its parent has among its VMs and the pools in it: by
//! shares, never less than a reservation, never more than a limit. The root is
//! the cluster. How entitlements follow from claims is the planner's business.

use serde::{Deserialize, Serialize};

use crate::{Bytes, Millicores, PoolId};

/// The shares of whoever does not say otherwise.
pub const SHARES_DEFAULT: u32 = 1000;
/// The most shares.
pub const SHARES_MAX: u32 = 1_000_000;
/// The deepest nesting of pools.
pub const POOL_DEPTH_MAX: usize = 8;

/// A resource pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pool {
    /// The pool's name.
    pub id: PoolId,
    /// The pool it is in; none: the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<PoolId>,
    /// What it may claim of its parent.
    #[serde(default)]
    pub claims: Claims,
}

/// What somebody may claim of each resource.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Claims {
    /// Of the CPU.
    #[serde(rename = "cpu_millicores")]
    pub cpu: Claim<Millicores>,
    /// Of the memory.
    #[serde(rename = "memory_bytes")]
    pub memory: Claim<Bytes>,
}

/// What somebody may claim of one resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim<Q> {
    /// The part against siblings when there is not enough for all, 1 to [`SHARES_MAX`].
    #[serde(default = "shares_default")]
    pub shares: u32,
    /// Never less than this, when it is wanted.
    #[serde(default)]
    pub reservation: Q,
    /// Never more than this.
    #[serde(default = "no_limit", skip_serializing_if = "Option::is_none")]
    pub limit: Option<Q>,
}

const fn shares_default() -> u32 {
    SHARES_DEFAULT
}

const fn no_limit<Q>() -> Option<Q> {
    None
}

impl<Q: Default> Default for Claim<Q> {
    fn default() -> Self {
        Self { shares: SHARES_DEFAULT, reservation: Q::default(), limit: None }
    }
}

impl Claims {
    /// Whether it claims nothing beyond what everybody does.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// What is out of range, in words.
    pub fn fault(&self) -> Option<String> {
        let shares = [self.cpu.shares, self.memory.shares];
        if let Some(bad) = shares.into_iter().find(|shares| !(1..=SHARES_MAX).contains(shares)) {
            return Some(format!("{bad} shares are not in 1 to {SHARES_MAX}"));
        }
        let over = |reserved: u64, limit: Option<u64>| limit.is_some_and(|limit| reserved > limit);
        let cpu = over(self.cpu.reservation.get(), self.cpu.limit.map(Millicores::get));
        let memory = over(self.memory.reservation.get(), self.memory.limit.map(Bytes::get));
        (cpu || memory).then(|| "more is reserved than the limit allows".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_may_be_left_out() {
        let pool: Pool = serde_json::from_str(r#"{"id":"p"}"#).unwrap();
        assert_eq!((pool.parent.clone(), pool.claims), (None, Claims::default()));
        let pool: Pool = serde_json::from_str(
            r#"{"id":"p","claims":{"cpu_millicores":{"reservation":"2","limit":4000}}}"#,
        )
        .unwrap();
        assert_eq!(pool.claims.cpu.shares, SHARES_DEFAULT);
        assert_eq!(pool.claims.cpu.reservation, Millicores(2000));
        assert_eq!(pool.claims.fault(), None);
    }

    #[test]
    fn a_reservation_above_the_limit_is_a_fault() {
        let mut claims = Claims::default();
        claims.memory.reservation = Bytes(2);
        claims.memory.limit = Some(Bytes(1));
        assert!(claims.fault().is_some());
        claims = Claims::default();
        claims.cpu.shares = 0;
        assert!(claims.fault().is_some());
    }
}
