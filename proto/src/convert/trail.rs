//! Reason trails and refusals that travel as values.

use ballast_model::reason::REASONS_MAX;
use ballast_model::{Reason, ReasonTrail, Refusal, RefusalCode, Timestamp};

use super::field::{invalid, required};
use crate::v1;

/// The longest `who` or `why`, in bytes.
pub const REASON_BYTES_MAX: usize = 1024;

/// A trail as messages, first cause first.
pub fn reasons_to_wire(trail: &ReasonTrail) -> Vec<v1::Reason> {
    let to_wire = |reason: &Reason| v1::Reason {
        who: reason.who.clone(),
        why: reason.why.clone(),
        when_unix_millis: reason.when.unix_millis(),
    };
    trail.reasons().iter().map(to_wire).collect()
}

/// A trail from messages.
///
/// # Errors
/// `InvalidArgument` when it is too long, or one reason is empty or too long.
pub fn reasons_from_wire(reasons: Vec<v1::Reason>, field: &str) -> Result<ReasonTrail, Refusal> {
    if reasons.len() > REASONS_MAX {
        return Err(invalid(
            field,
            format!("holds {} reasons", reasons.len()),
            format!("use at most {REASONS_MAX}"),
        ));
    }
    reasons
        .into_iter()
        .map(|reason| {
            Ok(Reason {
                who: checked_text(reason.who, field)?,
                why: checked_text(reason.why, field)?,
                when: Timestamp(reason.when_unix_millis),
            })
        })
        .collect()
}

/// Who acts and why, as the first reason of a trail.
///
/// # Errors
/// `InvalidArgument` when the actor is missing, or `who` or `why` is empty or too long.
pub fn actor(actor: Option<v1::Actor>, now: Timestamp) -> Result<ReasonTrail, Refusal> {
    let actor = required(actor, "actor")?;
    let who = checked_text(actor.who, "actor.who")?;
    let why = checked_text(actor.why, "actor.why")?;
    Ok(ReasonTrail::new(who, why, now))
}

fn checked_text(text: String, field: &str) -> Result<String, Refusal> {
    if text.trim().is_empty() || text.len() > REASON_BYTES_MAX {
        return Err(invalid(
            field,
            format!("who or why is {} bytes long", text.len()),
            format!("say who and why in 1 to {REASON_BYTES_MAX} bytes of text"),
        ));
    }
    Ok(text)
}

impl From<&Refusal> for v1::Refusal {
    fn from(refusal: &Refusal) -> Self {
        Self {
            code: refusal.code.name().to_owned(),
            reason: refusal.reason.clone(),
            remedy: refusal.remedy.clone(),
        }
    }
}

impl From<v1::Refusal> for Refusal {
    /// A code this build does not know, from a newer peer, becomes `Internal`: the reason still stands.
    fn from(message: v1::Refusal) -> Self {
        let code = RefusalCode::from_name(&message.code).unwrap_or(RefusalCode::Internal);
        Self::new(code, message.reason, message.remedy)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_reason() -> impl Strategy<Value = Reason> {
        ("[a-z:]{1,20}", "[a-zé ]{0,40}[a-z]", any::<u64>()).prop_map(|(who, why, when)| Reason {
            who,
            why,
            when: Timestamp(when),
        })
    }

    proptest! {
        #[test]
        fn trails_survive_the_wire(reasons in prop::collection::vec(any_reason(), 0..=REASONS_MAX)) {
            let trail: ReasonTrail = reasons.into_iter().collect();
            prop_assert_eq!(reasons_from_wire(reasons_to_wire(&trail), "reasons"), Ok(trail));
        }

        #[test]
        fn refusals_survive_the_wire(
            code in prop::sample::select(RefusalCode::ALL.to_vec()), reason: String, remedy: String,
        ) {
            let refusal = Refusal::new(code, reason, remedy);
            prop_assert_eq!(Refusal::from(v1::Refusal::from(&refusal)), refusal);
        }
    }

    #[test]
    fn an_actor_must_say_who_and_why() {
        let said = |who: &str, why: &str| {
            actor(Some(v1::Actor { who: who.into(), why: why.into() }), Timestamp(5))
        };
        assert_eq!(
            said("operator:root", "asked"),
            Ok(ReasonTrail::new("operator:root", "asked", Timestamp(5)))
        );
        assert!(said("", "asked").unwrap_err().reason.starts_with("field actor.who"));
        assert!(said("a", " ").unwrap_err().reason.starts_with("field actor.why"));
        assert!(said("a", &"x".repeat(REASON_BYTES_MAX + 1)).is_err());
        assert!(actor(None, Timestamp(5)).unwrap_err().reason.starts_with("field actor"));
    }

    #[test]
    fn too_many_reasons_are_refused() {
        let one = v1::Reason { who: "a".into(), why: "b".into(), when_unix_millis: 0 };
        assert!(reasons_from_wire(vec![one; REASONS_MAX + 1], "reasons").is_err());
    }

    #[test]
    fn an_unknown_code_keeps_its_reason() {
        let message = v1::Refusal { code: "NEW".into(), reason: "r".into(), remedy: "m".into() };
        assert_eq!(Refusal::from(message), Refusal::new(RefusalCode::Internal, "r", "m"));
    }
}
