//! The environment of a child: names on a list, and what the owner names himself. Nothing of ours, never a key.

use std::collections::BTreeMap;

/// Passed on when the host has them: where programs and the home are, the language, the terminal, the network's way out.
const ALLOWED: [&str; 26] = [
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "LANG",
    "LANGUAGE",
    "TZ",
    "TERM",
    "COLORTERM",
    "NO_COLOR",
    "TMPDIR",
    "XDG_CONFIG_HOME",
    "XDG_DATA_HOME",
    "XDG_CACHE_HOME",
    "XDG_STATE_HOME",
    "XDG_RUNTIME_DIR",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "NODE_EXTRA_CA_CERTS",
];

/// Passed on by how they begin.
const ALLOWED_PREFIX: &str = "LC_";

/// Ours, and other Nostr software's: not passed on even when the owner names them.
const REFUSED_PREFIXES: [&str; 3] = ["SKEP_", "NOSTR_", "BUZZ_"];

/// A Nostr secret key in text: bare, and encrypted (NIP-49).
const SECRETS: [&str; 2] = ["nsec1", "ncryptsec1"];

/// The whole environment that a child gets. Made by [`Environment::allowed`] only, so nothing slips in.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Environment(BTreeMap<String, String>);

/// A variable that may not be given to a child.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvironmentError {
    #[error("{0} is not a name of an environment variable")]
    Name(String),
    #[error("{0} is Skep's or Nostr's own; a child process gets none of these. Leave it out of the agent's `env`")]
    Ours(String),
    #[error(
        "the value of {0} holds a Nostr secret key; a child process never gets one. Leave it out of the agent's `env`"
    )]
    Secret(String),
}

impl Environment {
    /// From the variables of the host what is on the list or named in `extra`; then `set`, which wins.
    ///
    /// A host's variable that may not be passed on is left out; one that the owner names or sets is an error, so that
    /// he learns why his agent does not see it.
    pub fn allowed(
        host: impl IntoIterator<Item = (String, String)>,
        extra: &[String],
        set: &[(String, String)],
    ) -> Result<Self, EnvironmentError> {
        let mut vars = BTreeMap::new();
        for (name, value) in host {
            if extra.contains(&name) {
                check(&name, &value)?;
                vars.insert(name, value);
            } else if is_listed(&name) && check(&name, &value).is_ok() {
                vars.insert(name, value);
            }
        }
        for (name, value) in set {
            check(name, value)?;
            vars.insert(name.clone(), value.clone());
        }
        Ok(Self(vars))
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

/// Names only: a value may be the owner's key for a provider.
impl std::fmt::Debug for Environment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

fn is_listed(name: &str) -> bool {
    ALLOWED.contains(&name) || name.starts_with(ALLOWED_PREFIX)
}

fn check(name: &str, value: &str) -> Result<(), EnvironmentError> {
    if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
        return Err(EnvironmentError::Name(name.to_owned()));
    }
    if REFUSED_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) {
        return Err(EnvironmentError::Ours(name.to_owned()));
    }
    if SECRETS.iter().any(|secret| value.contains(secret)) {
        return Err(EnvironmentError::Secret(name.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(name: &str, value: &str) -> (String, String) {
        (name.to_owned(), value.to_owned())
    }

    #[test]
    fn a_child_gets_what_is_listed_or_named_and_nothing_else() {
        let host = [pair("PATH", "/bin"), pair("AWS_SECRET", "x"), pair("LC_ALL", "C"), pair("MY_KEY", "k")];
        let env = Environment::allowed(host, &["MY_KEY".into()], &[pair("MODE", "fast")]).expect("all may pass");
        let names: Vec<_> = env.iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["LC_ALL", "MODE", "MY_KEY", "PATH"]);
        assert!(!format!("{env:?}").contains("fast"), "values are not shown");
    }

    #[test]
    fn our_own_variables_and_keys_never_pass_even_when_named() {
        let ours = Environment::allowed([pair("SKEP_KEY", "1")], &["SKEP_KEY".into()], &[]);
        assert_eq!(ours, Err(EnvironmentError::Ours("SKEP_KEY".into())));
        let secret = Environment::allowed([], &[], &[pair("TOKEN", "x nsec1abc")]);
        assert_eq!(secret, Err(EnvironmentError::Secret("TOKEN".into())));
        let hidden = Environment::allowed([pair("TERM", "nsec1abc"), pair("SKEP_HOME", "/x")], &[], &[]);
        assert_eq!(hidden, Ok(Environment::default()));
    }
}
