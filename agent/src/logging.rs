//! The log: `tracing` to standard error, as `[log]` of the configuration says.
//!
//! Called once, by `serve`. Text is for people and for the journal (which brings its own time), JSON for log
//! collectors. What is logged is decided where it happens; tensors and secrets never are.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{Log, LogFormat};

#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error(
        "log.filter {filter:?} is not a filter such as \"info\" or \"edgeward_agent::fleet=debug,info\""
    )]
    Filter {
        filter: String,
        #[source]
        source: ParseError,
    },
    #[error("the log was started twice")]
    Twice,
}

/// Starts the log of this process.
pub fn init(log: &Log) -> Result<(), LogError> {
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter(&log.filter)?)
        .with_writer(std::io::stderr);
    let started = match log.format {
        LogFormat::Json => builder.json().flatten_event(true).finish().try_init(),
        LogFormat::Text => {
            let builder = builder.with_ansi(colourful());
            if std::env::var_os("JOURNAL_STREAM").is_some() {
                builder.without_time().finish().try_init()
            } else {
                builder.finish().try_init()
            }
        }
    };
    started.map_err(|_| LogError::Twice)
}

/// Reads a filter; also for whoever checks a configuration.
pub fn filter(text: &str) -> Result<EnvFilter, LogError> {
    EnvFilter::try_new(text).map_err(|source| LogError::Filter {
        filter: text.to_owned(),
        source,
    })
}

fn colourful() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_filter_is_explained_and_quoted() {
        assert!(filter("edgeward_agent::fleet=debug,info").is_ok());
        let error = filter("info,edgeward=loudly").expect_err("a wrong level");
        assert!(error.to_string().contains("loudly"), "{error}");
    }
}
