//! A rule as it stands in files and in the store.
//!
//! ```json
//! { "id": "web-apart", "kind": { "type": "anti_affinity", "vms": ["web-1", "web-2"] } }
//! { "id": "near-ssd", "strength": "should", "weight": 5, "kind": { … } }
//! ```
//!
//! Strength and hold may be left out. Rules written before they stood beside
//! the kind have the strength inside a `vm_host` kind; that is read as well.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Hold, Rule, RuleKind, Strength};
use crate::{Revision, RuleId};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RuleFile {
    id: RuleId,
    #[serde(default)]
    revision: Revision,
    #[serde(default)]
    strength: Option<Level>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    weight: Option<u32>,
    #[serde(default)]
    hold: Option<Hold>,
    kind: Value,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Level {
    Must,
    Should,
}

impl TryFrom<RuleFile> for Rule {
    type Error = String;

    fn try_from(mut file: RuleFile) -> Result<Self, String> {
        let in_rule = |what: serde_json::Error| format!("rule {}: {what}", file.id);
        let within = match file.kind.as_object_mut() {
            Some(kind) if kind.get("type").is_some_and(|name| name == "vm_host") => {
                kind.remove("strength")
            }
            _ => None,
        };
        let within: Option<Level> =
            within.map(serde_json::from_value).transpose().map_err(in_rule)?;
        let kind: RuleKind = serde_json::from_value(file.kind).map_err(in_rule)?;
        let strength = match (file.strength.or(within), file.weight) {
            (Some(Level::Should), weight) => Strength::Should { weight: weight.unwrap_or(1) },
            (Some(Level::Must) | None, None) => Strength::Must,
            (Some(Level::Must) | None, Some(_)) => {
                return Err(format!(
                    "rule {}: only a rule that 'should' hold has a weight",
                    file.id
                ));
            }
        };
        let hold = file.hold.unwrap_or_else(|| kind.hold_default());
        let rule = Self { id: file.id, revision: file.revision, strength, hold, kind };
        Ok(rule)
    }
}

impl From<Rule> for RuleFile {
    fn from(rule: Rule) -> Self {
        let (strength, weight) = match rule.strength {
            Strength::Must => (Level::Must, None),
            Strength::Should { weight } => (Level::Should, Some(weight)),
        };
        Self {
            id: rule.id,
            revision: rule.revision,
            strength: Some(strength),
            weight,
            hold: Some(rule.hold),
            // Names, numbers and lists of them always have a JSON form.
            kind: serde_json::to_value(&rule.kind).unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Rule, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn a_rule_of_before_is_read() {
        let old =
            r#"{"id":"r","kind":{"type":"vm_host","vms":["a"],"hosts":["h"],"strength":"should"}}"#;
        let rule = read(old).unwrap();
        assert_eq!((rule.strength, rule.hold), (Strength::SHOULD, Hold::Continuous));
        let old = r#"{"id":"r","revision":3,"kind":{"type":"anti_affinity","vms":["a","b"]}}"#;
        let rule = read(old).unwrap();
        assert_eq!(rule.strength, Strength::Must);
        assert!(matches!(rule.kind, RuleKind::AntiAffinity { per_host_max: 1, .. }));
    }

    #[test]
    fn what_is_written_reads_back() {
        for text in [
            r#"{"id":"r","kind":{"type":"affinity","vms":["a","b"],"domain":"room/rack"}}"#,
            r#"{"id":"r","strength":"should","weight":7,"kind":{"type":"vm_not_host","vms":["a"],"hosts":["h"]}}"#,
            r#"{"id":"r","kind":{"type":"spread","vms":["a","b"],"domain":"rack","domains_min":2}}"#,
            r#"{"id":"r","hold":"continuous","kind":{"type":"near","vms":["a"],"needs":["b"]}}"#,
            r#"{"id":"r","kind":{"type":"host_cap","vms":["a","b"],"hosts":["h","i"],"hosts_max":1}}"#,
            r#"{"id":"r","kind":{"type":"among","vms":["a"],"groups":[["h"],["i","j"]]}}"#,
        ] {
            let rule = read(text).unwrap();
            let written = serde_json::to_string(&rule).unwrap();
            assert_eq!(read(&written).unwrap(), rule, "{written}");
        }
    }

    #[test]
    fn what_does_not_fit_is_named() {
        for (text, words) in [
            (r#"{"id":"r","weight":2,"kind":{"type":"affinity","vms":["a"]}}"#, "has a weight"),
            (r#"{"id":"r","kind":{"type":"affinity","vms":["a"],"x":1}}"#, "unknown field `x`"),
            (r#"{"id":"r","kind":{"type":"sideways","vms":["a"]}}"#, "unknown variant `sideways`"),
        ] {
            // As in a snapshot, within a list: the error says where.
            let error = serde_json::from_str::<Vec<Rule>>(&format!("[{text}]")).unwrap_err();
            let error = error.to_string();
            assert!(error.contains(words) && error.contains("line 1"), "{error}");
        }
    }
}
