//! Where text goes: data to standard output, everything else to standard error, progress only to a terminal.
//!
//! Every command gets one. No meaning is carried by colour, so `NO_COLOR` has nothing to switch off but
//! what the help and the progress bars do, and both respect it.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use anyhow::{Context, Result};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

#[derive(Debug, Clone)]
pub struct Printer {
    progress: MultiProgress,
    terminal: bool,
}

impl Printer {
    pub fn new() -> Self {
        let terminal = io::stderr().is_terminal();
        let target = if terminal {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        Self {
            progress: MultiProgress::with_draw_target(target),
            terminal,
        }
    }

    /// Whether progress is shown as it moves; if not, changes are worth a line each.
    pub fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// A result, to standard output.
    pub fn data(&self, text: &str) -> Result<()> {
        self.progress
            .suspend(|| {
                let mut out = io::stdout().lock();
                out.write_all(text.as_bytes())?;
                if !text.ends_with('\n') {
                    out.write_all(b"\n")?;
                }
                out.flush()
            })
            .context("cannot write to standard output")
    }

    /// A result for programs, to standard output.
    pub fn json(&self, value: &impl Serialize) -> Result<()> {
        let text = serde_json::to_string_pretty(value).context("cannot write JSON")?;
        self.data(&text)
    }

    /// Something worth knowing, to standard error.
    pub fn note(&self, text: &str) {
        self.progress.suspend(|| {
            // There is nobody left to tell if this fails.
            let _ = writeln!(io::stderr(), "{text}");
        });
    }

    /// Something to look at, to standard error.
    pub fn warn(&self, text: &str) {
        self.note(&format!("warning: {text}"));
    }

    /// A bar that counts to `length`.
    pub fn bar(&self, what: &'static str, length: u64) -> ProgressBar {
        let style = ProgressStyle::with_template("{msg:12} [{bar:40}] {pos}/{len}")
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .progress_chars("=> ");
        let bar = self
            .progress
            .add(ProgressBar::new(length).with_style(style));
        bar.set_message(what);
        bar
    }

    /// A line that says what something is doing.
    pub fn line(&self, what: &str) -> ProgressBar {
        let style = ProgressStyle::with_template("{spinner} {prefix}  {msg}")
            .unwrap_or_else(|_| ProgressStyle::default_spinner());
        let line = self
            .progress
            .add(ProgressBar::new_spinner().with_style(style));
        line.set_prefix(what.to_owned());
        line.enable_steady_tick(Duration::from_millis(120));
        line
    }
}

/// Text in columns, two spaces apart, without trailing spaces.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<_> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Foreign text made safe for a terminal: control characters replaced, length bounded.
pub fn plain(text: &str) -> String {
    const LONGEST: usize = 300;
    let mut plain: String = text
        .chars()
        .take(LONGEST)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if text.chars().nth(LONGEST).is_some() {
        plain.push('…');
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [
            vec!["DEVICE", "ONLINE"],
            vec!["ct-scanner", "yes"],
            vec!["a"],
        ];
        let rows: Vec<Vec<String>> = rows
            .iter()
            .map(|row| row.iter().map(|&cell| cell.to_owned()).collect())
            .collect();
        assert_eq!(table(&rows), "DEVICE      ONLINE\nct-scanner  yes\na\n");
        assert_eq!(table(&[]), "");
    }

    #[test]
    fn foreign_text_cannot_move_the_cursor() {
        assert_eq!(plain("a\u{1b}[2Jb\nc"), "a [2Jb c");
        assert_eq!(plain(&"x".repeat(1000)).chars().count(), 301);
    }
}
