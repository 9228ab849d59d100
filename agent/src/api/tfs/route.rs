//! Paths of TensorFlow Serving's REST: `/v1/models/M[/versions/V|/labels/L][:VERB|/metadata]`.

use crate::api::destination::Pick;

/// What is asked of which model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked<'a> {
    pub question: Question,
    pub model: &'a str,
    pub pick: Option<Pick<'a>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    Status,
    Metadata,
    Predict,
    Classify,
    Regress,
}

impl Question {
    /// Whether it comes with a body.
    pub fn is_posted(self) -> bool {
        !matches!(self, Self::Status | Self::Metadata)
    }
}

/// What stands behind `/v1/models/`.
pub fn of_path(path: &str) -> Option<Asked<'_>> {
    let (path, question) = match path.rsplit_once(':') {
        Some((path, "predict")) => (path, Question::Predict),
        Some((path, "classify")) => (path, Question::Classify),
        Some((path, "regress")) => (path, Question::Regress),
        Some(_) => return None,
        None => match path.strip_suffix("/metadata") {
            Some(path) => (path, Question::Metadata),
            None => (path, Question::Status),
        },
    };
    let mut parts = path.split('/');
    let model = parts.next().filter(|model| !model.is_empty())?;
    let pick = match parts.next() {
        None => None,
        Some(kind) => {
            let value = parts.next().filter(|value| !value.is_empty())?;
            Some(match kind {
                "versions" => Pick::Version(value),
                "labels" => Pick::Label(value),
                _ => return None,
            })
        }
    };
    parts.next().is_none().then_some(Asked {
        question,
        model,
        pick,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_is_found_and_no_other() {
        let asked = |question, pick| {
            Some(Asked {
                question,
                model: "digits",
                pick,
            })
        };
        let (version, label) = (Some(Pick::Version("3")), Some(Pick::Label("stable")));
        for (path, expected) in [
            ("digits", asked(Question::Status, None)),
            ("digits/versions/3", asked(Question::Status, version)),
            ("digits/metadata", asked(Question::Metadata, None)),
            (
                "digits/labels/stable/metadata",
                asked(Question::Metadata, label),
            ),
            ("digits:predict", asked(Question::Predict, None)),
            (
                "digits/versions/3:classify",
                asked(Question::Classify, version),
            ),
            (
                "digits/labels/stable:regress",
                asked(Question::Regress, label),
            ),
        ] {
            assert_eq!(of_path(path), expected, "{path}");
        }
        for path in [
            "",
            ":predict",
            "digits:explain",
            "digits/",
            "digits/versions",
            "digits/versions/:predict",
            "digits/versions/3/labels/stable",
            "digits/nonsense/3",
            "digits/metadata:predict",
        ] {
            assert_eq!(of_path(path), None, "{path}");
        }
    }
}
