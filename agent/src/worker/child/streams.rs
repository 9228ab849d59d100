//! The interpreters of a model that keeps state: one for each stream of requests.
//!
//! TFLite cannot set variables back, so a stream begins with a new interpreter, and ends with it. The agent
//! gives out the numbers and bounds how many there are.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::instance::Instance;
use super::load;
use crate::tflite::Model;
use crate::worker::wire::{Setup, Stream};

/// The streams of one worker.
pub struct Streams {
    model: Arc<Model>,
    open: Mutex<HashMap<u32, Arc<Mutex<Instance>>>>,
}

impl Streams {
    pub fn new(model: Arc<Model>) -> Self {
        Self {
            model,
            open: Mutex::default(),
        }
    }

    /// One more interpreter, that answers like the first ones.
    pub fn another(&self, setup: &Setup) -> Result<Instance, String> {
        load::beside(&self.model, setup)
    }

    /// The interpreter of a stream, new if it begins. A job that still runs on the one before keeps that to its
    /// end, and nobody sees what it leaves there.
    pub fn take(&self, stream: Stream, setup: &Setup) -> Result<Arc<Mutex<Instance>>, String> {
        if !stream.begin {
            let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            let found = open.get(&stream.number).cloned();
            return found.ok_or_else(|| "its stream has not begun".to_owned());
        }
        let made = Arc::new(Mutex::new(load::another(&self.model, setup)?));
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let before = open.insert(stream.number, Arc::clone(&made));
        // Deleting an interpreter may take its time.
        drop(open);
        drop(before);
        Ok(made)
    }

    /// Lets go of a stream's interpreter, if it is still this one.
    pub fn end(&self, number: u32, instance: &Arc<Mutex<Instance>>) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open
            .get(&number)
            .is_some_and(|own| Arc::ptr_eq(own, instance))
        {
            open.remove(&number);
        }
    }
}
