//! The leader's fence: what every transaction compares so that only the acting leader writes.

use std::sync::{Arc, PoisonError, RwLock};

use ballast_model::{Refusal, RefusalCode};

use crate::store::Compare;

/// Whether this controller leads, shared by all who write.
#[derive(Debug, Clone, Default)]
pub struct Fence(Arc<RwLock<Option<Compare>>>);

impl Fence {
    /// It leads while `fence` holds.
    pub fn raise(&self, fence: Compare) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(fence);
    }

    /// It leads no more.
    pub fn drop_leadership(&self) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Whether it leads, as far as it knows.
    pub fn leads(&self) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// The compare that holds only while it leads.
    ///
    /// # Errors
    /// `Unavailable` when it knows that it does not.
    pub fn compare(&self) -> Result<Compare, Refusal> {
        let fence = self.0.read().unwrap_or_else(PoisonError::into_inner).clone();
        fence.ok_or_else(|| {
            Refusal::new(
                RefusalCode::Unavailable,
                "this controller does not lead",
                "ask the leading controller, or try again in a few seconds",
            )
        })
    }
}
