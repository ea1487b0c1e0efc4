//! Single fields: the checks every message shares.
//!
//! Each takes the field's name as the caller of the service knows it, so that
//! the refusal points at the place to correct.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use ballast_model::id::NAME_BYTES_MAX;
use ballast_model::{
    DrainGoal, HostId, HostState, MigrationId, PlanId, Refusal, RefusalCode, RuleId, VmId,
};

use crate::v1;

/// The most characters of a refused value that are shown back.
const SHOWN_CHARS_MAX: usize = 80;

/// A refusal of `field` with what is wrong and what to do.
pub fn invalid(field: &str, what: impl Display, remedy: impl Into<String>) -> Refusal {
    Refusal::new(RefusalCode::InvalidArgument, format!("field {field}: {what}"), remedy)
}

fn shown(text: &str) -> String {
    let mut short: String = text.chars().take(SHOWN_CHARS_MAX).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    format!("{short:?}")
}

fn name<T: FromStr>(text: &str, field: &str, kind: &str) -> Result<T, Refusal> {
    text.parse().map_err(|_| {
        invalid(
            field,
            format!("{} is not a {kind} name", shown(text)),
            format!(
                "use 1 to {NAME_BYTES_MAX} characters of a-z, 0-9, '-', '_' and '.', \
                 starting with a letter or digit"
            ),
        )
    })
}

fn uuid<T: FromStr>(text: &str, field: &str, kind: &str) -> Result<T, Refusal> {
    text.parse().map_err(|_| {
        invalid(
            field,
            format!("{} is not a {kind} id", shown(text)),
            "give the UUID as it was shown",
        )
    })
}

/// A host's name.
///
/// # Errors
/// `InvalidArgument` naming the field.
pub fn host_id(text: &str, field: &str) -> Result<HostId, Refusal> {
    name(text, field, "host")
}

/// A host's name, or none where the field is empty.
///
/// # Errors
/// `InvalidArgument` naming the field.
pub fn optional_host_id(text: &str, field: &str) -> Result<Option<HostId>, Refusal> {
    (!text.is_empty()).then(|| host_id(text, field)).transpose()
}

/// A VM's name.
///
/// # Errors
/// `InvalidArgument` naming the field.
pub fn vm_id(text: &str, field: &str) -> Result<VmId, Refusal> {
    name(text, field, "VM")
}

/// A VM's name, or none where the field is empty.
///
/// # Errors
/// `InvalidArgument` naming the field.
pub fn optional_vm_id(text: &str, field: &str) -> Result<Option<VmId>, Refusal> {
    (!text.is_empty()).then(|| vm_id(text, field)).transpose()
}

/// A rule's name.
///
/// # Errors
/// `InvalidArgument` naming the field.
pub fn rule_id(text: &str, field: &str) -> Result<RuleId, Refusal> {
    name(text, field, "rule")
}

/// A migration's id.
///
/// # Errors
/// `InvalidArgument` naming the field.
pub fn migration_id(text: &str, field: &str) -> Result<MigrationId, Refusal> {
    uuid(text, field, "migration")
}

/// A plan's id.
///
/// # Errors
/// `InvalidArgument` naming the field.
pub fn plan_id(text: &str, field: &str) -> Result<PlanId, Refusal> {
    uuid(text, field, "plan")
}

/// A path as it goes over the wire. One that is not UTF-8 loses what is not; paths
/// that came through a file or the wire never are.
pub fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// A path.
///
/// # Errors
/// `InvalidArgument` naming the field, when it holds a NUL byte.
pub fn path(text: String, field: &str) -> Result<PathBuf, Refusal> {
    if text.contains('\0') {
        return Err(invalid(field, "holds a NUL byte", "give the path as plain text"));
    }
    Ok(text.into())
}

/// A path that means the same whoever resolves it.
///
/// # Errors
/// `InvalidArgument` naming the field, when it is not absolute or holds a NUL byte.
pub fn absolute_path(text: String, field: &str) -> Result<PathBuf, Refusal> {
    let path = path(text, field)?;
    if !path.is_absolute() {
        let what = format!("{:?} is not an absolute path", path.display().to_string());
        return Err(invalid(field, what, "give the whole path, starting with '/'"));
    }
    Ok(path)
}

/// A path, or none where the field is empty.
///
/// # Errors
/// `InvalidArgument` naming the field, when it holds a NUL byte.
pub fn optional_path(text: String, field: &str) -> Result<Option<PathBuf>, Refusal> {
    (!text.is_empty()).then(|| path(text, field)).transpose()
}

/// A message that must be there.
///
/// # Errors
/// `InvalidArgument` naming the field.
pub fn required<T>(value: Option<T>, field: &str) -> Result<T, Refusal> {
    value.ok_or_else(|| invalid(field, "is missing", "fill it in"))
}

/// A generated enum that must be said and known: its zero value means "not said".
///
/// # Errors
/// `InvalidArgument` naming the field.
pub fn required_enum<E>(value: i32, field: &str) -> Result<E, Refusal>
where
    E: TryFrom<i32> + Default + PartialEq,
{
    let known: E = known_enum(value, field)?;
    if known == E::default() {
        return Err(invalid(field, "is not said", "set it to one of the values of its enum"));
    }
    Ok(known)
}

/// The same for an enum that has a value for "not said".
///
/// # Errors
/// `InvalidArgument` naming the field.
pub fn known_enum<E: TryFrom<i32>>(value: i32, field: &str) -> Result<E, Refusal> {
    E::try_from(value).map_err(|_| {
        invalid(
            field,
            format!("value {value} is not known here"),
            "bring both sides to the same version",
        )
    })
}

/// What an operator lets a host do.
///
/// # Errors
/// `InvalidArgument` naming the field, when it is not said or not known.
pub fn host_state(value: i32, field: &str) -> Result<HostState, Refusal> {
    Ok(match required_enum(value, field)? {
        v1::HostState::Draining => HostState::Draining,
        v1::HostState::Quarantined => HostState::Quarantined,
        v1::HostState::Active | v1::HostState::Unspecified => HostState::Active,
    })
}

impl From<HostState> for v1::HostState {
    fn from(state: HostState) -> Self {
        match state {
            HostState::Active => Self::Active,
            HostState::Draining => Self::Draining,
            HostState::Quarantined => Self::Quarantined,
        }
    }
}

/// What matters most when a host is emptied, if that is said.
///
/// # Errors
/// `InvalidArgument` naming the field, when it is not known.
pub fn drain_goal(value: i32, field: &str) -> Result<Option<DrainGoal>, Refusal> {
    Ok(match known_enum(value, field)? {
        v1::DrainGoal::Unspecified => None,
        v1::DrainGoal::Balanced => Some(DrainGoal::Balanced),
        v1::DrainGoal::Fastest => Some(DrainGoal::Fastest),
        v1::DrainGoal::LeastDisturbing => Some(DrainGoal::LeastDisturbing),
    })
}

impl From<Option<DrainGoal>> for v1::DrainGoal {
    fn from(goal: Option<DrainGoal>) -> Self {
        match goal {
            None => Self::Unspecified,
            Some(DrainGoal::Balanced) => Self::Balanced,
            Some(DrainGoal::Fastest) => Self::Fastest,
            Some(DrainGoal::LeastDisturbing) => Self::LeastDisturbing,
        }
    }
}

impl v1::MigrationStatus {
    /// The state, when it is said and known.
    ///
    /// # Errors
    /// `InvalidArgument` naming the field.
    pub fn checked_state(&self) -> Result<v1::MigrationState, Refusal> {
        required_enum(self.state, "migration.state")
    }

    /// The role, when it is said and known.
    ///
    /// # Errors
    /// `InvalidArgument` naming the field.
    pub fn checked_role(&self) -> Result<v1::MigrationRole, Refusal> {
        required_enum(self.role, "migration.role")
    }
}

impl v1::MigrationState {
    /// Whether nothing comes after it.
    pub const fn is_ended(self) -> bool {
        matches!(self, Self::Finished | Self::Aborted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_refused<T: std::fmt::Debug>(result: Result<T, Refusal>, expected: &str) {
        let refusal = result.unwrap_err();
        assert_eq!(refusal.code, RefusalCode::InvalidArgument);
        assert_eq!(refusal.reason, expected);
        assert!(!refusal.remedy.is_empty());
    }

    #[test]
    fn refusals_name_the_field() {
        check_refused(vm_id("", "vm"), "field vm: \"\" is not a VM name");
        check_refused(host_id("A b", "to"), "field to: \"A b\" is not a host name");
        check_refused(
            migration_id("7", "migration"),
            "field migration: \"7\" is not a migration id",
        );
        check_refused(required::<u8>(None, "spec"), "field spec: is missing");
    }

    #[test]
    fn a_long_value_is_shown_in_part() {
        let refusal = rule_id(&"é".repeat(5_000), "rule").unwrap_err();
        assert!(refusal.reason.len() < 300, "{refusal}");
    }

    #[test]
    fn enums_must_be_said_and_known() {
        check_refused(host_state(0, "state"), "field state: is not said");
        check_refused(host_state(99, "state"), "field state: value 99 is not known here");
        for state in [HostState::Active, HostState::Draining, HostState::Quarantined] {
            assert_eq!(host_state(v1::HostState::from(state) as i32, "state"), Ok(state));
        }
    }

    #[test]
    fn a_goal_of_a_drain_need_not_be_said() {
        let goals = DrainGoal::ALL.map(Some);
        for goal in goals.into_iter().chain([None]) {
            assert_eq!(drain_goal(v1::DrainGoal::from(goal) as i32, "goal"), Ok(goal));
        }
        check_refused(drain_goal(9, "goal"), "field goal: value 9 is not known here");
    }

    #[test]
    fn an_empty_optional_name_is_none() {
        assert_eq!(optional_host_id("", "to"), Ok(None));
        assert_eq!(optional_vm_id("a", "vm"), Ok(Some("a".parse().unwrap())));
        assert!(optional_vm_id("-a", "vm").is_err());
    }

    #[test]
    fn a_status_without_state_or_role_is_refused() {
        let mut status = v1::MigrationStatus::default();
        check_refused(status.checked_state(), "field migration.state: is not said");
        check_refused(status.checked_role(), "field migration.role: is not said");
        status.set_state(v1::MigrationState::Ready);
        assert_eq!(status.checked_state(), Ok(v1::MigrationState::Ready));
        assert!(!v1::MigrationState::Ready.is_ended() && v1::MigrationState::Aborted.is_ended());
    }
}
