//! What can go wrong below an event.

/// A failure of the store. Its text is for the operator; a client is told [`StoreError::public`].
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the disk is full")]
    DiskFull,
    #[error("the store has reached its map size of {map_bytes} bytes; raise relay.map_gib")]
    MapFull { map_bytes: u64 },
    #[error("the store cannot go on until it is opened again: {0}")]
    Fatal(String),
    #[error("the store holds something that is not a record: {0}")]
    Corrupt(&'static str),
    #[error(
        "the store is of format {found}, this program knows {known}; use the program that wrote it, or export and import"
    )]
    Format { found: u32, known: u32 },
    #[error("another process uses {path}; stop it, or give this one another --data")]
    Locked { path: String },
    #[error("{what} {path}: {cause}")]
    Io { what: &'static str, path: String, cause: std::io::Error },
    #[error("store: {0}")]
    Other(String),
}

impl StoreError {
    /// What a client may know.
    pub fn public(&self) -> &'static str {
        match self {
            Self::DiskFull | Self::MapFull { .. } => "the relay's disk is full; nothing was stored, try again later",
            _ => "the relay could not store this; try again later",
        }
    }

    /// The same failure, for one more who has to be told.
    pub(crate) fn again(&self) -> Self {
        match self {
            Self::DiskFull => Self::DiskFull,
            Self::MapFull { map_bytes } => Self::MapFull { map_bytes: *map_bytes },
            Self::Fatal(why) => Self::Fatal(why.clone()),
            other => Self::Other(other.to_string()),
        }
    }

    pub fn io(what: &'static str, path: &std::path::Path, cause: std::io::Error) -> Self {
        if cause.raw_os_error() == Some(rustix::io::Errno::NOSPC.raw_os_error()) {
            return Self::DiskFull;
        }
        Self::Io { what, path: path.display().to_string(), cause }
    }
}
