//! Where the agent listens, and whom it answers there.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Deserialize;

/// The local socket for inference. Ignored where systemd passes one named `edgeward.socket`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UnixDoor {
    pub path: PathBuf,
    /// Octal, as text: who may open the socket at all.
    pub mode: String,
    /// Group name or number that the socket belongs to; absent: the agent's own.
    pub group: Option<String>,
    /// Users (names or numbers) whose requests are answered. Both lists empty: whoever can open the socket.
    pub allow_users: Vec<String>,
    /// Groups (names or numbers) whose members' requests are answered (primary or supplementary).
    pub allow_groups: Vec<String>,
}

impl Default for UnixDoor {
    fn default() -> Self {
        Self {
            path: "/run/edgeward/edgeward.sock".into(),
            mode: "0660".to_owned(),
            group: None,
            allow_users: Vec::new(),
            allow_groups: Vec::new(),
        }
    }
}

/// The HTTPS listener.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsDoor {
    pub listen: SocketAddr,
    /// PEM: the server's certificate chain.
    pub certificate: PathBuf,
    /// PEM: its private key.
    pub private_key: PathBuf,
    /// PEM: client certificates must come from this authority.
    #[serde(default)]
    pub client_ca: Option<PathBuf>,
    /// Bearer tokens, as `edgeward token` makes them: a name and the SHA-256 of the token.
    #[serde(default)]
    pub tokens: Vec<Token>,
    /// With both `client_ca` and `tokens`: either is enough, unless this is true.
    #[serde(default)]
    pub require_both: bool,
    /// Must say `anyone-who-can-connect-may-infer` to listen without client certificates and tokens.
    #[serde(default)]
    pub without_authentication: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    /// Whose it is: stands in logs and the audit log.
    pub name: String,
    /// SHA-256 of the token, 64 hexadecimal digits.
    pub sha256: String,
}
