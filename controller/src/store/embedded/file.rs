//! The file: its tables, how it is created, opened and opened again.
//!
//! | table | key | value |
//! | --- | --- | --- |
//! | `keys` | the key | created, modified, lease (0: none), value |
//! | `lease_keys` | lease, key | nothing; which keys hang on which lease |
//! | `meta` | `format`, `revision` | a number |

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use ballast_model::{Refusal, RefusalCode, Revision};
use bytes::Bytes;
use redb::{
    Builder, Database, DatabaseError, ReadableDatabase, ReadableTable, Table, TableDefinition,
    WriteTransaction,
};

use crate::store::{Compare, Entry};

/// Created, modified, lease (0: none), value.
pub(super) type Record = (u64, u64, i64, &'static [u8]);

pub(super) const KEYS: TableDefinition<'static, &'static str, Record> =
    TableDefinition::new("keys");
pub(super) const LEASE_KEYS: TableDefinition<'static, (i64, &'static str), ()> =
    TableDefinition::new("lease_keys");
pub(super) const META: TableDefinition<'static, &'static str, u64> = TableDefinition::new("meta");

/// Changes with the layout of the tables.
const FORMAT: u64 = 1;
/// The revision of a store nothing was ever written to; etcd's is the same.
pub(super) const FIRST_REVISION: Revision = Revision(1);
/// Memory for pages of the file.
const CACHE_BYTES: usize = 32 << 20;

/// Opens the database that exists already.
pub(super) type Opener = dyn Fn() -> Result<Database, DatabaseError> + Send + Sync;

/// The revision and format of what `database` holds. Creates the tables where there are none.
pub(super) fn prepare(database: &Database) -> Result<(u64, Revision), redb::Error> {
    let transaction = database.begin_write()?;
    let found = {
        let mut meta = transaction.open_table(META)?;
        let format = meta.get("format")?.map(|value| value.value());
        let revision = meta.get("revision")?.map(|value| value.value());
        if format.is_none() {
            meta.insert("format", FORMAT)?;
            meta.insert("revision", FIRST_REVISION.0)?;
        }
        (format, revision)
    };
    if let (Some(format), revision) = found {
        transaction.abort()?;
        return Ok((format, revision.map_or(FIRST_REVISION, Revision)));
    }
    transaction.open_table(KEYS)?;
    transaction.open_table(LEASE_KEYS)?;
    transaction.commit()?;
    Ok((FORMAT, FIRST_REVISION))
}

/// The revision of what `database` holds now.
pub(super) fn revision(database: &Database) -> Result<Revision, redb::Error> {
    let transaction = database.begin_read()?;
    let meta = transaction.open_table(META)?;
    Ok(meta.get("revision")?.map_or(FIRST_REVISION, |value| Revision(value.value())))
}

/// The tables of one writing transaction.
pub(super) struct Tables<'t> {
    pub(super) keys: Table<'t, &'static str, Record>,
    pub(super) lease_keys: Table<'t, (i64, &'static str), ()>,
    pub(super) meta: Table<'t, &'static str, u64>,
}

impl<'t> Tables<'t> {
    pub(super) fn open(transaction: &'t WriteTransaction) -> Result<Self, redb::Error> {
        Ok(Self {
            keys: transaction.open_table(KEYS)?,
            lease_keys: transaction.open_table(LEASE_KEYS)?,
            meta: transaction.open_table(META)?,
        })
    }

    /// Created and modified revisions and lease of a key that exists.
    fn stamp(&self, key: &str) -> Result<Option<(Revision, Revision, i64)>, redb::Error> {
        Ok(self.keys.get(key)?.map(|record| {
            let (created, modified, lease, _) = record.value();
            (Revision(created), Revision(modified), lease)
        }))
    }

    pub(super) fn holds(&self, compare: &Compare) -> Result<bool, redb::Error> {
        Ok(match compare {
            Compare::Absent(key) => self.stamp(key)?.is_none(),
            Compare::CreatedAt(key, at) => self.stamp(key)?.is_some_and(|(c, ..)| c == *at),
            Compare::ModifiedAt(key, at) => self.stamp(key)?.is_some_and(|(_, m, _)| m == *at),
        })
    }

    pub(super) fn put(
        &mut self,
        key: &str,
        value: &Bytes,
        lease: i64,
        at: Revision,
    ) -> Result<Entry, redb::Error> {
        let old = self.stamp(key)?;
        let created = old.map_or(at, |(created, ..)| created);
        self.detach(key, old.map_or(0, |(.., lease)| lease))?;
        if lease != 0 {
            self.lease_keys.insert((lease, key), ())?;
        }
        self.keys.insert(key, (created.0, at.0, lease, value.as_ref()))?;
        Ok(Entry { key: key.to_owned(), value: value.clone(), created, modified: at })
    }

    /// Whether there was anything to delete.
    pub(super) fn delete(&mut self, key: &str) -> Result<bool, redb::Error> {
        let Some((.., lease)) = self.stamp(key)? else { return Ok(false) };
        self.detach(key, lease)?;
        self.keys.remove(key)?;
        Ok(true)
    }

    fn detach(&mut self, key: &str, lease: i64) -> Result<(), redb::Error> {
        if lease != 0 {
            self.lease_keys.remove((lease, key))?;
        }
        Ok(())
    }

    /// The keys that hang on `lease`; on any, when `None`.
    pub(super) fn keys_on(&self, lease: Option<i64>) -> Result<Vec<String>, redb::Error> {
        let mut found = Vec::new();
        for item in self.lease_keys.range((lease.unwrap_or(i64::MIN), "")..)? {
            let (key, _) = item?;
            let (hangs_on, name) = key.value();
            if lease.is_some_and(|lease| lease != hangs_on) {
                break;
            }
            found.push(name.to_owned());
        }
        found.sort_unstable();
        Ok(found)
    }
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

/// Creates the file if there is none, and opens it.
pub(super) fn open(path: &Path) -> Result<(Database, Box<Opener>), Refusal> {
    let exists = fs::metadata(path).is_ok_and(|found| found.len() > 0);
    if !exists {
        create(path)?;
    }
    let database = builder().open(path).map_err(|error| refusal(path, &error))?;
    let path = path.to_owned();
    Ok((database, Box::new(move || builder().open(&path))))
}

/// Checks format and tables of a database just opened.
pub(super) fn check(path: &Path, database: &Database) -> Result<Revision, Refusal> {
    let (format, revision) = prepare(database).map_err(|error| corrupt(path, &error))?;
    if format != FORMAT {
        return Err(Refusal::new(
            RefusalCode::Incompatible,
            format!("{} has format {format}; this version reads {FORMAT}", path.display()),
            "use the version of ballast-controller that wrote it, or another file",
        ));
    }
    Ok(revision)
}

/// Creates the file under another name and links it into place once it is whole and durable, so
/// that a process killed in between leaves no half a file behind. Loses gracefully to another
/// process that does the same.
fn create(path: &Path) -> Result<(), Refusal> {
    let cannot = |error: &dyn std::fmt::Display| {
        Refusal::new(
            RefusalCode::HostFailure,
            format!("cannot create the store {}: {error}", path.display()),
            "check that its directory exists, can be written to and has room",
        )
    };
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(format!(".new-{}", std::process::id()));
    let unfinished = PathBuf::from(unfinished);
    let _ = fs::remove_file(&unfinished); // of a killed process with the same number
    let result = (|| {
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&unfinished)
            .map_err(|error| cannot(&error))?;
        drop(file);
        let database = builder().create(&unfinished).map_err(|error| cannot(&error))?;
        prepare(&database).map_err(|error| cannot(&error))?;
        drop(database);
        if fs::metadata(path).is_ok_and(|found| found.len() == 0) {
            fs::remove_file(path).map_err(|error| cannot(&error))?;
        }
        match fs::hard_link(&unfinished, path) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(cannot(&error)),
            _ => {}
        }
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        File::open(directory.unwrap_or(Path::new(".")))
            .and_then(|directory| directory.sync_all())
            .map_err(|error| cannot(&error))
    })();
    let _ = fs::remove_file(&unfinished);
    result
}

/// Who holds a lock on the file, where the kernel says.
fn holder(path: &Path) -> Option<String> {
    let inode = format!(":{}", fs::metadata(path).ok()?.ino());
    let own = std::process::id();
    fs::read_to_string("/proc/locks").ok()?.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let at = fields.iter().position(|field| field.ends_with(&inode))?;
        let pid: u32 = fields.get(at.checked_sub(1)?)?.parse().ok()?;
        if pid == own {
            return Some("this process".to_owned());
        }
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        Some(format!("process {pid} ({})", name.trim()))
    })
}

fn refusal(path: &Path, error: &DatabaseError) -> Refusal {
    let shown = path.display();
    match error {
        DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => {
            let who = holder(path).unwrap_or_else(|| "another process".to_owned());
            Refusal::new(
                RefusalCode::WrongState,
                format!("the store {shown} is in use by {who}"),
                "end that process, or configure another path",
            )
        }
        DatabaseError::UpgradeRequired(version) => Refusal::new(
            RefusalCode::Incompatible,
            format!("the store {shown} has file format {version}, which this version cannot read"),
            "use the version of ballast-controller that wrote it, or another file",
        ),
        DatabaseError::Storage(redb::StorageError::Io(error))
            if error.kind() != ErrorKind::InvalidData
                && error.kind() != ErrorKind::UnexpectedEof =>
        {
            Refusal::new(
                RefusalCode::HostFailure,
                format!("cannot open the store {shown}: {error}"),
                "check that the path is a file that can be read and written",
            )
        }
        other => corrupt(path, other),
    }
}

/// The refusal of a file that is none of ours, or no longer whole.
pub(super) fn corrupt(path: &Path, error: &dyn std::fmt::Display) -> Refusal {
    Refusal::new(
        RefusalCode::HostFailure,
        format!("{} is not a readable store: {error}", path.display()),
        "restore it from a backup, or configure the path of a new file",
    )
}
