//! Which store to use.
//!
//! ```toml
//! [store]
//! kind = "embedded"
//! path = "/var/lib/ballast/controller.redb"
//! ```
//!
//! ```toml
//! [store]
//! kind = "etcd"
//! endpoints = ["127.0.0.1:2379"]
//! ```

use std::path::PathBuf;
use std::sync::Arc;

use ballast_model::Refusal;
use serde::Deserialize;

use super::Store;
use super::embedded::EmbeddedStore;
use super::etcd::EtcdStore;

/// The `[store]` table of the controller's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum StoreConfig {
    /// One file, for one controller on one machine.
    Embedded {
        /// Created when it does not exist; its directory must exist.
        path: PathBuf,
    },
    /// An etcd cluster, for one or several controllers.
    Etcd {
        /// `host:port` or `http://host:port` of each member.
        endpoints: Vec<String>,
    },
}

/// Opens the configured store. Must be called within a tokio runtime.
///
/// # Errors
/// When the file cannot be opened or no endpoint answers; names it and the remedy.
pub async fn open(config: &StoreConfig) -> Result<Arc<dyn Store>, Refusal> {
    match config {
        StoreConfig::Embedded { path } => Ok(Arc::new(EmbeddedStore::open(path).await?)),
        StoreConfig::Etcd { endpoints } => Ok(Arc::new(EtcdStore::open(endpoints).await?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Result<StoreConfig, &str>) {
        match (toml::from_str::<StoreConfig>(text), expected) {
            (Ok(config), Ok(expected)) => assert_eq!(config, expected),
            (Err(error), Err(part)) => {
                assert!(error.message().contains(part), "{error}");
            }
            (parsed, expected) => panic!("{text}: {parsed:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn both_kinds_parse_and_unknown_keys_are_errors() {
        let path = PathBuf::from("/x");
        check("kind = 'embedded'\npath = '/x'", Ok(StoreConfig::Embedded { path }));
        let endpoints = vec!["127.0.0.1:2379".to_owned()];
        check("kind = 'etcd'\nendpoints = ['127.0.0.1:2379']", Ok(StoreConfig::Etcd { endpoints }));
        check("kind = 'embedded'\npath = '/x'\npaht = 1", Err("unknown field `paht`"));
        check("kind = 'embedded'", Err("missing field `path`"));
        check("kind = 'consul'", Err("unknown variant `consul`"));
    }
}
