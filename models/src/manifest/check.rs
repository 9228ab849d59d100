//! What the types of a manifest do not already say.

use std::collections::BTreeSet;

use super::{
    MANIFEST_FILE, MAX_DIMENSIONS, MAX_REQUEST_BYTES, Manifest, ManifestError, Signature, Tolerance,
};

impl Manifest {
    /// Checks everything that the types do not already say.
    pub fn check(&self) -> Result<(), ManifestError> {
        self.problem().map_or(Ok(()), |problem| {
            Err(ManifestError::Invalid {
                model: self.model.clone(),
                version: self.version.clone(),
                problem,
            })
        })
    }

    fn problem(&self) -> Option<String> {
        if !self.files.contains_key(&self.model_file) {
            return Some(format!("model_file {} is not among files", self.model_file));
        }
        if let Some(golden) = &self.golden_file
            && !self.files.contains_key(golden)
        {
            return Some(format!("golden_file {golden} is not among files"));
        }
        if self.files.keys().any(|f| f.as_str() == MANIFEST_FILE) {
            return Some(format!("{MANIFEST_FILE} cannot list itself among files"));
        }
        if self.signatures.is_empty() {
            return Some("signatures is empty: a model needs at least one".to_owned());
        }
        let mut names = BTreeSet::new();
        for signature in &self.signatures {
            if !names.insert(&signature.name) {
                return Some(format!("signature {:?} stands there twice", signature.name));
            }
            if let Some(problem) = signature_problem(signature) {
                return Some(format!("signature {:?}: {problem}", signature.name));
            }
        }
        if self.delegates.is_empty() {
            return Some("delegates is empty: name at least \"builtin\"".to_owned());
        }
        for choice in &self.delegates {
            let Tolerance { float, .. } = choice.tolerance;
            if !(0.0..=1.0).contains(&choice.least_share) {
                return Some(format!(
                    "delegate {}: least_share must be 0 to 1",
                    choice.delegate
                ));
            }
            if !float.is_finite() || float < 0.0 {
                return Some(format!(
                    "delegate {}: tolerance.float must be 0 or more",
                    choice.delegate
                ));
            }
            if choice
                .options
                .iter()
                .any(|(k, v)| k.contains('\0') || v.contains('\0'))
            {
                return Some(format!(
                    "delegate {}: an option holds a NUL",
                    choice.delegate
                ));
            }
        }
        if self.instances == 0 || self.instances > 64 {
            return Some("instances must be 1 to 64".to_owned());
        }
        if self.threads == 0 || self.threads > 256 {
            return Some("threads must be 1 to 256".to_owned());
        }
        if !(1..=1024).contains(&self.sequences.most) || self.sequences.idle_seconds == 0 {
            return Some(
                "sequences: most must be 1 to 1024 and idle_seconds at least 1".to_owned(),
            );
        }
        if self.invoke_limit_ms == 0 {
            return Some("invoke_limit_ms must be at least 1".to_owned());
        }
        if self.max_request_bytes > MAX_REQUEST_BYTES {
            return Some(format!(
                "max_request_bytes is over the limit of {MAX_REQUEST_BYTES}"
            ));
        }
        None
    }
}

fn signature_problem(signature: &Signature) -> Option<String> {
    if signature.inputs.is_empty() || signature.outputs.is_empty() {
        return Some("needs at least one input and one output".to_owned());
    }
    for (kind, tensors) in [("input", &signature.inputs), ("output", &signature.outputs)] {
        let mut names = BTreeSet::new();
        for tensor in tensors {
            if tensor.name.is_empty() || !names.insert(&tensor.name) {
                return Some(format!(
                    "{kind} name {:?} is empty or stands there twice",
                    tensor.name
                ));
            }
            if tensor.shape.len() > MAX_DIMENSIONS {
                return Some(format!(
                    "{kind} {}: more than {MAX_DIMENSIONS} dimensions",
                    tensor.name
                ));
            }
            if tensor
                .shape
                .iter()
                .any(|&d| d == 0 || d < -1 || d > i64::from(i32::MAX))
            {
                return Some(format!(
                    "{kind} {}: a dimension must be -1 or at least 1",
                    tensor.name
                ));
            }
            if tensor.quantization.is_some_and(|q| !q.scale.is_finite()) {
                return Some(format!(
                    "{kind} {}: quantization.scale must be a finite number",
                    tensor.name
                ));
            }
            if tensor.room() > MAX_REQUEST_BYTES {
                return Some(format!(
                    "{kind} {}: larger than {MAX_REQUEST_BYTES} bytes",
                    tensor.name
                ));
            }
        }
    }
    None
}
