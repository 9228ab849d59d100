//! Reading and replacing the state directory's documents; a damaged one falls back to its generation before.

use std::collections::BTreeMap;
use std::fs;

use edgeward_models::ModelName;
use edgeward_models::durable::{self, Access, Generations, Stored};
use serde::{Deserialize, Serialize};
use tracing::error;

use super::{Applied, ModelRecord, StateDirectory, StateError};

impl StateDirectory {
    /// All pointers. One that is damaged falls back to its generation before; one that cannot be read at all
    /// is reported and left alone, since the others must serve.
    pub fn records(&self) -> Result<BTreeMap<ModelName, ModelRecord>, StateError> {
        let directory = self.root.join("active");
        let unusable = |source| StateError::Unusable {
            path: directory.clone(),
            source,
        };
        let mut records = BTreeMap::new();
        for entry in fs::read_dir(&directory).map_err(unusable)? {
            let name = entry.map_err(unusable)?.file_name();
            let Ok(model) = name.to_string_lossy().parse::<ModelName>() else {
                continue;
            };
            match self.record(&model) {
                Ok(record) => {
                    records.insert(model, record);
                }
                Err(problem) => {
                    error!(%model, %problem, "pointer unreadable; the model is not served");
                }
            }
        }
        Ok(records)
    }

    pub(super) fn model_file(&self, model: &ModelName, file: &str) -> Generations {
        // A directory of its own: beside each other, the generation before of `a` would be named like the
        // pointer of a model `a.before`.
        Generations::new(self.root.join("active").join(model.as_str()).join(file))
    }

    pub fn record(&self, model: &ModelName) -> Result<ModelRecord, StateError> {
        Ok(read_document(&self.model_file(model, "pointer"))?.unwrap_or_default())
    }

    /// Replaces a model's pointers in one step.
    pub fn write_record(&self, model: &ModelName, record: &ModelRecord) -> Result<(), StateError> {
        write_document(&self.model_file(model, "pointer"), record)
    }

    fn desired_file(&self) -> Generations {
        Generations::new(self.root.join("desired"))
    }

    pub fn applied(&self) -> Result<Applied, StateError> {
        Ok(read_document(&self.desired_file())?.unwrap_or_default())
    }

    pub fn write_applied(&self, applied: &Applied) -> Result<(), StateError> {
        write_document(&self.desired_file(), applied)
    }
}

pub(super) fn read_document<T: for<'de> Deserialize<'de>>(
    file: &Generations,
) -> Result<Option<T>, StateError> {
    let bytes = match file.read()? {
        Stored::Absent => return Ok(None),
        Stored::Good(bytes) => bytes,
        Stored::Damaged {
            before: Some(bytes),
        } => {
            error!(path = %file.path().display(), "state file damaged; the generation before it is used");
            bytes
        }
        Stored::Damaged { before: None } => {
            return Err(StateError::Damaged(file.path().to_owned()));
        }
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|source| StateError::Foreign {
            path: file.path().to_owned(),
            source,
        })
}

pub(super) fn write_document<T: Serialize>(
    file: &Generations,
    document: &T,
) -> Result<(), StateError> {
    let bytes = serde_json::to_vec_pretty(document).map_err(|source| StateError::Foreign {
        path: file.path().to_owned(),
        source,
    })?;
    if let Some(parent) = file.path().parent() {
        durable::create_directory(parent)?;
    }
    Ok(file.write(&bytes, Access::Owner)?)
}
