//! The metrics page, put together when somebody asks: each part of the agent writes its own families.

use super::page::{Form, Page};

/// A part that has families of its own.
pub type Source = Box<dyn Fn(&mut Page) + Send + Sync>;

/// Everybody who has something to say, in order.
#[derive(Default)]
pub struct Metrics {
    sources: Vec<Source>,
}

impl Metrics {
    pub fn add(&mut self, source: impl Fn(&mut Page) + Send + Sync + 'static) {
        self.sources.push(Box::new(source));
    }

    /// The whole page.
    pub fn text(&self, form: Form) -> String {
        let mut page = Page::new(form);
        page.gauge("edgeward_info", "The version of this agent.");
        page.value("edgeward_info", &[("version", crate::VERSION)], 1);
        for source in &self.sources {
            source(&mut page);
        }
        page.finish()
    }
}
