//! Names, parsed once into types: after that a name is safe in a path, a topic and a log line.
//!
//! Every name is 1 to 64 bytes of `a-z`, `0-9`, `-`, `_` and `.`, begins with a letter or a digit,
//! does not end with a dot and holds no two dots in a row. So no name can be `..`, hold a slash, an MQTT
//! wildcard or a control character. (64 is what a DICOM device identification can carry.)

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The longest name, in bytes.
pub const MAX_NAME_BYTES: usize = 64;

/// Why a text is not a name.
#[derive(Debug, thiserror::Error)]
pub enum NameError {
    #[error("{kind} must be 1 to {MAX_NAME_BYTES} characters, not {length}")]
    Length { kind: &'static str, length: usize },
    #[error(
        "{kind} {text:?} may hold only a-z, 0-9, '-', '_' and '.', begin with a letter or a digit, \
         and have no dot at its end or beside another dot"
    )]
    Form { kind: &'static str, text: String },
    #[error("version {text:?} is not a semantic version such as 1.2.0")]
    Version {
        text: String,
        #[source]
        source: semver::Error,
    },
    #[error("version {text:?} may hold no '+' build part and at most {MAX_NAME_BYTES} characters")]
    VersionForm { text: String },
}

fn check(kind: &'static str, text: &str) -> Result<(), NameError> {
    if text.is_empty() || text.len() > MAX_NAME_BYTES {
        return Err(NameError::Length {
            kind,
            length: text.len(),
        });
    }
    let allowed = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.');
    let form = text.bytes().all(allowed)
        && text.as_bytes()[0].is_ascii_alphanumeric()
        && !text.ends_with('.')
        && !text.contains("..");
    if form {
        Ok(())
    } else {
        Err(NameError::Form {
            kind,
            text: text.chars().take(MAX_NAME_BYTES).collect(),
        })
    }
}

macro_rules! name_type {
    ($(#[$doc:meta])* $type:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $type(String);

        impl $type {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                check($kind, text)?;
                Ok(Self(text.to_owned()))
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.0)
            }
        }

        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?
                    .parse()
                    .map_err(serde::de::Error::custom)
            }
        }
    };
}

name_type!(
    /// A served model, such as `digits`.
    ModelName,
    "a model name"
);
name_type!(
    /// A set of devices that run the same versions, such as `radiology`.
    GroupName,
    "a group name"
);
name_type!(
    /// One device; the common name of its certificate.
    DeviceId,
    "a device id"
);
name_type!(
    /// The fleet; a level of every topic.
    FleetName,
    "a fleet name"
);
name_type!(
    /// Where a model may run: `builtin`, `xnnpack`, or a delegate profile of the device's configuration.
    DelegateName,
    "a delegate name"
);
name_type!(
    /// A file of a package, such as `model.tflite`.
    FileName,
    "a file name"
);
name_type!(
    /// One rollout: the wish that a group runs one version, from one `fleetctl push` or `rollback`.
    RolloutId,
    "a rollout id"
);

name_type!(
    /// A name for a version of a model that requests may use, such as `canary`.
    LabelName,
    "a label"
);

impl DelegateName {
    /// TFLite's own kernels, always there.
    pub const BUILTIN: &'static str = "builtin";
    /// The XNNPACK delegate of the TFLite library.
    pub const XNNPACK: &'static str = "xnnpack";
}

/// One immutable release of a model, as people name it: a semantic version without build metadata.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Version(semver::Version);

impl Version {
    pub fn new(major: u64, minor: u64, patch: u64) -> Self {
        Self(semver::Version::new(major, minor, patch))
    }

    pub fn semver(&self) -> &semver::Version {
        &self.0
    }
}

impl FromStr for Version {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let version = semver::Version::parse(text).map_err(|source| NameError::Version {
            text: text.chars().take(MAX_NAME_BYTES).collect(),
            source,
        })?;
        // Two versions that differ only in build metadata are equal in precedence: one name, one thing.
        // An upper-case pre-release tag would be two names on one case-blind USB stick.
        if !version.build.is_empty()
            || text.len() > MAX_NAME_BYTES
            || text.bytes().any(|b| b.is_ascii_uppercase())
        {
            return Err(NameError::VersionForm {
                text: text.chars().take(MAX_NAME_BYTES).collect(),
            });
        }
        Ok(Self(version))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for Version {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Version {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ordinary_names_are_taken_as_they_are() {
        for text in ["digits", "chest-x-ray_2", "a", "v1.2", "0"] {
            assert_eq!(text.parse::<ModelName>().expect(text).as_str(), text);
        }
    }

    #[test]
    fn path_topic_and_control_tricks_are_refused() {
        for text in [
            "", ".", "..", "a/b", "a\\b", "../x", "a..b", "a.", "-a", "+", "#", "a+", "$SYS", "A",
            "é", "a\0", "a b", "con:",
        ] {
            assert!(text.parse::<ModelName>().is_err(), "{text:?} was taken");
        }
        assert!("a".repeat(65).parse::<DeviceId>().is_err());
    }

    #[test]
    fn versions_are_semantic_and_carry_no_build_part() {
        assert_eq!(
            "2.0.0".parse::<Version>().expect("plain").to_string(),
            "2.0.0"
        );
        assert!("2.0.0-rc.1".parse::<Version>().expect("pre") < Version::new(2, 0, 0));
        for text in ["2", "2.0", "v2.0.0", "2.0.0+x", "2.0.0-RC1", "../1.0.0", ""] {
            assert!(text.parse::<Version>().is_err(), "{text:?} was taken");
        }
    }

    proptest! {
        #[test]
        fn whatever_parses_is_one_safe_path_component(text in "\\PC{0,70}") {
            if let Ok(name) = text.parse::<GroupName>() {
                let path = std::path::Path::new(name.as_str());
                prop_assert_eq!(path.components().count(), 1);
                prop_assert!(matches!(path.components().next(), Some(std::path::Component::Normal(_))));
            }
        }
    }
}
