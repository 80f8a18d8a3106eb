//! `skep key`: private keys of this home.

use std::io::{self, IsTerminal, Read};
use std::path::Path;

use serde_json::{Value, json};
use skep_node::client::management;
use skep_node::clock::unix_now;
use skep_node::home::{self, Existing};
use skep_node::keys::{
    self, KeyEntry, KeyError, KeyName, KeySource, KeyState, Keyring, Keys, SecretText, StoredKey, npub,
};
use skep_proto::PubKey;
use skep_proto::attestation::Conditions;

use super::{agent, block_on, keyring, load_key};
use crate::cli::KeyCommand;
use crate::error::{CliError, Kind};
use crate::screen::{self, Output, escape};

/// Bytes of a secret on stdin: an ncryptsec has 162, and a key file may end in some space.
const SECRET_BYTES_MAX: u64 = 4_096;

pub fn run(command: KeyCommand, out: &mut Output) -> Result<(), CliError> {
    let ring = keyring()?;
    match command {
        KeyCommand::Generate { name, encrypt } => {
            let name = free_name(&ring, &name.name)?;
            let keys = Keys::generate()?;
            store(&ring, &name, &keys, encrypt)?;
            print(&ring, &name, out)
        }
        KeyCommand::Import { name, from, encrypt } => {
            let name = free_name(&ring, &name.name)?;
            import(&ring, &name, from.as_deref(), encrypt)?;
            print(&ring, &name, out)
        }
        KeyCommand::Show { name } => print(&ring, &name.name.parse()?, out),
        KeyCommand::Export { name, encrypt, reveal: _, output } => {
            export(&ring, &name.name.parse()?, encrypt, output.as_deref(), out)
        }
        KeyCommand::Rotate { name, owner, relay } => rotate(&ring, &name.name.parse()?, owner.as_deref(), &relay, out),
        KeyCommand::Encrypt { name } => {
            let name = name.name.parse()?;
            encrypt(&ring, &name)?;
            print(&ring, &name, out)
        }
        KeyCommand::List => list(&ring, out),
    }
}

/// A name that no key has yet, known before anybody types a passphrase. Storing checks again.
fn free_name(ring: &Keyring, text: &str) -> Result<KeyName, CliError> {
    let name: KeyName = text.parse()?;
    match ring.path(&name).symlink_metadata() {
        Ok(_) => Err(KeyError::Exists { name }.into()),
        Err(_) => Ok(name),
    }
}

fn store(ring: &Keyring, name: &KeyName, keys: &Keys, encrypt: bool) -> Result<(), CliError> {
    let stored = match encrypt {
        true => keys.encrypt(&keys::passphrase_twice(&format!("the key {name}"))?)?,
        false => StoredKey::Plain(keys.clone()),
    };
    Ok(ring.store(name, &stored, Some(&keys.pubkey()), Existing::Keep)?)
}

fn import(ring: &Keyring, name: &KeyName, from: Option<&str>, encrypt: bool) -> Result<(), CliError> {
    let source: Option<KeySource> = from.map(str::parse).transpose()?;
    let stored = match source {
        Some(source) => ring.read_from(&source)?,
        None if io::stdin().is_terminal() => ring.read_from(&KeySource::Prompt)?,
        None => StoredKey::parse(&stdin_secret()?, "stdin")?,
    };
    match stored {
        // Opened once, to learn its public key and that the passphrase is known here.
        StoredKey::Encrypted(_) => {
            let keys = stored.clone().unlock(|| keys::passphrase("the key to import"))?;
            Ok(ring.store(name, &stored, Some(&keys.pubkey()), Existing::Keep)?)
        }
        StoredKey::Plain(keys) => store(ring, name, &keys, encrypt),
    }
}

fn stdin_secret() -> Result<SecretText, CliError> {
    let unreadable = |error: io::Error| CliError::new(Kind::Input, format!("cannot read a key from stdin: {error}"));
    let mut text = SecretText::new(String::with_capacity(SECRET_BYTES_MAX as usize));
    io::stdin().take(SECRET_BYTES_MAX).read_to_string(&mut text).map_err(unreadable)?;
    Ok(text)
}

fn print(ring: &Keyring, name: &KeyName, out: &mut Output) -> Result<(), CliError> {
    let KeyState { encrypted, pubkey } = ring.state(name)?;
    let path = ring.path(name);
    if out.json {
        return out.json_line(&described(name, &path, encrypted, pubkey));
    }
    out.line(&format!("name    {name}"))?;
    match pubkey {
        Some(key) => {
            out.line(&format!("npub    {}", npub(&key)))?;
            out.line(&format!("hex     {key}"))?;
        }
        None => out.line("npub    unknown: skep key rotate or import makes it known")?,
    }
    let how = if encrypted { "  (encrypted)" } else { "" };
    out.line(&format!("file    {}{how}", escape(&path.display().to_string())))
}

fn described(name: &KeyName, path: &Path, encrypted: bool, pubkey: Option<PubKey>) -> Value {
    json!({
        "name": name.as_str(),
        "npub": pubkey.as_ref().map(npub),
        "pubkey": pubkey,
        "encrypted": encrypted,
        "path": path.display().to_string(),
    })
}

fn export(
    ring: &Keyring,
    name: &KeyName,
    encrypt: bool,
    output: Option<&Path>,
    out: &mut Output,
) -> Result<(), CliError> {
    let stored = ring.read(name)?;
    let what = format!("the key {name}");
    let exported = match encrypt {
        // It is under a passphrase already, and stays under the same one.
        true if stored.is_encrypted() => stored,
        true => stored.unlock(|| keys::passphrase(&what))?.encrypt(&keys::passphrase_twice("the export")?)?,
        false => StoredKey::Plain(stored.unlock(|| keys::passphrase(&what))?),
    };
    let Some(path) = output else {
        return match out.json {
            true => out.json_line(&json!({ "name": name.as_str(), "secret": exported.text().as_str() })),
            false => out.line(&exported.text()),
        };
    };
    let line = SecretText::new(format!("{}\n", exported.text().as_str()));
    home::write_private(path, line.as_bytes(), Existing::Keep)?;
    if out.json {
        return out.json_line(&json!({ "name": name.as_str(), "path": path, "encrypted": exported.is_encrypted() }));
    }
    out.line(&format!("written to {}", escape(&path.display().to_string())))
}

fn encrypt(ring: &Keyring, name: &KeyName) -> Result<(), CliError> {
    match ring.read(name)? {
        StoredKey::Encrypted(_) => Err(KeyError::Encrypted { name: name.clone() }.into()),
        StoredKey::Plain(keys) => {
            let locked = keys.encrypt(&keys::passphrase_twice(&format!("the key {name}"))?)?;
            Ok(ring.store(name, &locked, Some(&keys.pubkey()), Existing::Replace)?)
        }
    }
}

/// Everything that may ask or fail comes before the key is replaced; relays are told after.
fn rotate(
    ring: &Keyring,
    name: &KeyName,
    owner: Option<&str>,
    relays: &[String],
    out: &mut Output,
) -> Result<(), CliError> {
    let before = ring.state(name)?;
    let owner = owner.map(load_key).transpose()?;
    if owner.as_ref().is_some_and(|owner| Some(owner.pubkey()) == before.pubkey) {
        return Err(CliError::new(Kind::Input, format!("{name} cannot own itself")).hint("name its owner with --owner"));
    }
    let new = Keys::generate()?;
    let tag =
        owner.as_ref().map(|owner| agent::attestation(owner, &new.pubkey(), &Conditions::default())).transpose()?;
    let stored = match before.encrypted {
        true => new.encrypt(&keys::passphrase_twice(&format!("the new key {name}"))?)?,
        false => StoredKey::Plain(new.clone()),
    };
    let retired = ring.retire(name, unix_now())?;
    ring.store(name, &stored, Some(&new.pubkey()), Existing::Replace)?;
    screen::remark(&format!("note: the old key is kept as {retired}"));
    print(ring, name, out)?;
    let (Some(owner), Some(tag)) = (owner, tag) else { return Ok(()) };
    agent::print_attestation(&owner.pubkey(), &new.pubkey(), &Conditions::default(), &tag, out)?;
    for relay in relays {
        tell(relay, &owner, before.pubkey, &new, &tag).map_err(|error| CliError {
            cause: format!("the key is rotated, but the relay does not know: {}", error.cause),
            hint: before.pubkey.map(|old| format!("later: skep agent revoke {old} --key OWNER --relay {relay}")),
            kind: error.kind,
        })?;
    }
    Ok(())
}

/// The new key introduces itself with its owner's attestation; then the owner revokes the old one.
fn tell(relay: &str, owner: &Keys, old: Option<PubKey>, new: &Keys, tag: &[String; 4]) -> Result<(), CliError> {
    block_on(async {
        agent::introduce(relay, new.clone(), tag.clone()).await?;
        if let Some(old) = old {
            management(relay, "revokeagent", &json!([old]), owner).await?;
        }
        Ok(())
    })
}

fn list(ring: &Keyring, out: &mut Output) -> Result<(), CliError> {
    let entries = ring.list()?;
    let widest = entries.iter().map(|entry| entry.name.as_str().len()).max().unwrap_or(0);
    for KeyEntry { name, path, state } in &entries {
        match state {
            Ok(KeyState { encrypted, pubkey }) if out.json => {
                out.json_line(&described(name, path, *encrypted, *pubkey))?;
            }
            Err(error) if out.json => {
                out.json_line(&json!({ "name": name.as_str(), "path": path, "error": error.to_string() }))?;
            }
            Ok(KeyState { encrypted, pubkey }) => {
                let shown = pubkey.as_ref().map_or_else(|| "unknown".into(), npub);
                let how = if *encrypted { "  encrypted" } else { "" };
                out.line(&format!("{name:widest$}  {shown}{how}"))?;
            }
            Err(error) => out.line(&format!("{name:widest$}  UNUSABLE: {}", escape(&error.to_string())))?,
        }
    }
    if entries.is_empty() && out.is_for_a_person() {
        screen::remark("no keys yet; make one: skep key generate");
    }
    Ok(())
}
