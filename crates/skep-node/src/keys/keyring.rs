//! The keys of one home: `keys/<name>.key`, one line each, nsec or ncryptsec. Beside it `<name>.pub` holds the
//! npub, so that an encrypted key can be named and shown without its passphrase.

use std::fs;
use std::path::{Path, PathBuf};

use skep_proto::{PubKey, Timestamp};

use super::source::text_of;
use super::{KeyError, KeyName, KeySource, Keys, SecretText, StoredKey, npub, pubkey};
use crate::home::{self, Existing, Home, HomeError};

/// The directory of keys.
#[derive(Debug, Clone)]
pub struct Keyring {
    home: Home,
}

/// One key as a listing shows it.
#[derive(Debug)]
pub struct KeyEntry {
    pub name: KeyName,
    pub path: PathBuf,
    /// What is known without a passphrase, or why the key cannot be used.
    pub state: Result<KeyState, KeyError>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyState {
    pub encrypted: bool,
    /// `None` for an encrypted key whose `.pub` file is gone.
    pub pubkey: Option<PubKey>,
}

impl Keyring {
    pub fn of(home: &Home) -> Self {
        Self { home: home.clone() }
    }

    /// Where a key is, or would be.
    pub fn path(&self, name: &KeyName) -> PathBuf {
        self.file(name, "key")
    }

    /// Writes a key. With [`Existing::Keep`] a key of that name is never touched.
    pub fn store(
        &self,
        name: &KeyName,
        key: &StoredKey,
        pubkey: Option<&PubKey>,
        existing: Existing,
    ) -> Result<(), KeyError> {
        self.home.directory("keys")?;
        if existing == Existing::Replace {
            // A crash between the two files must leave the public key unknown, never wrong.
            home::remove(&self.file(name, "pub"))?;
        }
        let line = SecretText::new(format!("{}\n", key.text().as_str()));
        home::write_private(&self.path(name), line.as_bytes(), existing).map_err(|error| match error {
            HomeError::Exists { .. } => KeyError::Exists { name: name.clone() },
            other => KeyError::File(other),
        })?;
        if let Some(pubkey) = pubkey {
            let line = format!("{}\n", npub(pubkey));
            home::write_private(&self.file(name, "pub"), line.as_bytes(), Existing::Replace)?;
        }
        Ok(())
    }

    /// A key as it is stored.
    pub fn read(&self, name: &KeyName) -> Result<StoredKey, KeyError> {
        let path = self.path(name);
        let bytes = home::read_private(&path).map_err(|error| match error {
            HomeError::Missing { .. } => KeyError::Unknown { name: name.clone() },
            other => KeyError::File(other),
        })?;
        let origin = path.display().to_string();
        StoredKey::parse(&text_of(bytes, &origin)?, &origin)
    }

    /// A key as it is written, wherever `source` says.
    pub fn read_from(&self, source: &KeySource) -> Result<StoredKey, KeyError> {
        match source {
            KeySource::Name(name) => self.read(name),
            outside => outside.read_outside(),
        }
    }

    /// A key from wherever `source` says, ready to sign; `ask` gets what the passphrase is for.
    pub fn load(
        &self,
        source: &KeySource,
        ask: impl FnOnce(&str) -> Result<SecretText, KeyError>,
    ) -> Result<Keys, KeyError> {
        let stored = self.read_from(source)?;
        stored.unlock(|| ask(&source.to_string()))
    }

    /// What is known of a key without a passphrase.
    pub fn state(&self, name: &KeyName) -> Result<KeyState, KeyError> {
        Ok(match self.read(name)? {
            StoredKey::Plain(keys) => KeyState { encrypted: false, pubkey: Some(keys.pubkey()) },
            StoredKey::Encrypted(_) => KeyState { encrypted: true, pubkey: self.noted_pubkey(name) },
        })
    }

    /// Reads hex, npub, nprofile, or the name of a key here.
    pub fn pubkey(&self, text: &str) -> Result<PubKey, KeyError> {
        let not_public = match pubkey(text) {
            Ok(key) => return Ok(key),
            Err(error) => error,
        };
        let Ok(name) = text.parse() else { return Err(not_public) };
        match self.state(&name) {
            Ok(KeyState { pubkey: Some(key), .. }) => Ok(key),
            Ok(_) | Err(KeyError::Unknown { .. }) => Err(not_public),
            Err(error) => Err(error),
        }
    }

    /// Every key, by name. No directory is no keys.
    pub fn list(&self) -> Result<Vec<KeyEntry>, KeyError> {
        let directory = self.home.path().join("keys");
        match home::check_directory(&directory) {
            Ok(()) => {}
            Err(HomeError::Missing { .. }) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        }
        let failed = |source| HomeError::Io { verb: "list", path: directory.clone(), source };
        let mut found = Vec::new();
        for entry in fs::read_dir(&directory).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if let Some(name) = name_of(&path) {
                let state = self.state(&name);
                found.push(KeyEntry { name, path, state });
            }
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// Gives a key a second name that it keeps after [`Self::store`] has replaced it.
    pub fn retire(&self, name: &KeyName, now: Timestamp) -> Result<KeyName, KeyError> {
        let second = name.retired(now);
        home::keep_as(&self.path(name), &self.path(&second)).map_err(|error| match error {
            HomeError::Exists { .. } => KeyError::Exists { name: second.clone() },
            other => KeyError::File(other),
        })?;
        if let Some(pubkey) = self.noted_pubkey(name) {
            let line = format!("{}\n", npub(&pubkey));
            home::write_private(&self.file(&second, "pub"), line.as_bytes(), Existing::Replace)?;
        }
        Ok(second)
    }

    fn noted_pubkey(&self, name: &KeyName) -> Option<PubKey> {
        let bytes = home::read_private(&self.file(name, "pub")).ok()?;
        pubkey(std::str::from_utf8(&bytes).ok()?.trim()).ok()
    }

    fn file(&self, name: &KeyName, extension: &str) -> PathBuf {
        self.home.path().join("keys").join(format!("{name}.{extension}"))
    }
}

fn name_of(path: &Path) -> Option<KeyName> {
    if path.extension()? != "key" {
        return None;
    }
    path.file_stem()?.to_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keyring() -> (tempfile::TempDir, Keyring) {
        let dir = tempfile::tempdir().expect("a directory");
        let ring = Keyring::of(&Home::at(dir.path().join("home")));
        (dir, ring)
    }

    fn name(text: &str) -> KeyName {
        text.parse().expect("a name")
    }

    #[test]
    fn a_stored_key_is_never_overwritten_unless_asked() {
        let (_dir, ring) = keyring();
        assert!(ring.list().expect("empty").is_empty());
        let (one, two) = (Keys::generate().expect("random"), Keys::generate().expect("random"));
        let bob = name("bob");
        let store =
            |keys: &Keys, existing| ring.store(&bob, &StoredKey::Plain(keys.clone()), Some(&keys.pubkey()), existing);
        store(&one, Existing::Keep).expect("stored");
        assert!(matches!(store(&two, Existing::Keep), Err(KeyError::Exists { .. })));
        assert_eq!(ring.pubkey("bob").expect("known"), one.pubkey());
        let old = ring.retire(&bob, 17).expect("retired");
        store(&two, Existing::Replace).expect("replaced");
        assert_eq!(ring.pubkey("bob").expect("known"), two.pubkey());
        assert_eq!(ring.pubkey(old.as_str()).expect("known"), one.pubkey());
        let names: Vec<String> = ring.list().expect("listed").iter().map(|e| e.name.to_string()).collect();
        assert_eq!(names, ["bob", "bob-retired-17"]);
    }

    #[test]
    fn an_encrypted_key_is_known_by_name_without_its_passphrase() {
        let (_dir, ring) = keyring();
        let keys = Keys::generate().expect("random");
        let bob = name("bob");
        let locked = keys.encrypt("sesame").expect("encrypted");
        ring.store(&bob, &locked, Some(&keys.pubkey()), Existing::Keep).expect("stored");
        assert_eq!(ring.pubkey("bob").expect("known"), keys.pubkey());
        let source = KeySource::Name(bob);
        let opened = ring.load(&source, |_| Ok(SecretText::new("sesame".into()))).expect("opened");
        assert_eq!(opened.pubkey(), keys.pubkey());
        let wrong = ring.load(&source, |_| Ok(SecretText::new("guess".into())));
        assert!(matches!(wrong, Err(KeyError::WrongPassphrase)));
    }
}
