//! `edgeward check-config`: says what is wrong with the configuration, line by line, before the agent does.
//!
//! Problems go to stdout, one block each with the line it is about; exit 0 without any, 1 with some, 2 if
//! the file cannot be read. Files, users and groups are looked up with the rights of whoever runs it: best
//! run as the agent's user.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;

use crate::config::{Located, explain};

/// Arguments of `edgeward check-config`.
#[derive(Debug, clap::Args)]
pub struct Args {}

impl Args {
    pub fn run(self, config: &Path) -> anyhow::Result<ExitCode> {
        let text = std::fs::read_to_string(config)
            .with_context(|| format!("cannot read the configuration {}", config.display()))?;
        let problems = explain(&text);
        let mut out = std::io::stdout().lock();
        out.write_all(report(config, &text, &problems).as_bytes())?;
        Ok(ExitCode::from(u8::from(!problems.is_empty())))
    }
}

/// All problems as a person reads them.
fn report(path: &Path, text: &str, problems: &[Located]) -> String {
    let path = path.display();
    let mut out = String::new();
    for problem in problems {
        let key = match problem.key.as_str() {
            "" => String::new(),
            key => format!("{key}: "),
        };
        let said = problem.text.replace('\n', " ");
        if problem.line == 0 {
            out += &format!(
                "{path}: {key}{said} (this is the default; the file does not mention it)\n\n"
            );
            continue;
        }
        let (line, column) = (problem.line, problem.column);
        let shown = text.lines().nth(line - 1).unwrap_or_default();
        let number = line.to_string();
        let margin = " ".repeat(number.len());
        let indent: String = shown
            .chars()
            .take(column - 1)
            .map(|c| if c == '\t' { '\t' } else { ' ' })
            .collect();
        out += &format!(
            "{path}:{line}:{column}: {key}{said}\n {margin} |\n {number} | {shown}\n {margin} | {indent}^\n\n"
        );
    }
    out += &match problems.len() {
        0 => format!("{path} is in order\n"),
        1 => "1 problem\n".to_owned(),
        count => format!("{count} problems\n"),
    };
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_shown_with_its_line_and_a_mark_below_the_place() {
        let text = "[unix]\nmode = \"rw\"\n";
        let problems: Vec<_> = explain(text)
            .into_iter()
            .filter(|p| p.key == "unix.mode")
            .collect();
        assert_eq!(
            report(Path::new("agent.toml"), text, &problems),
            "agent.toml:2:8: unix.mode: \"rw\" is no octal mode such as \"0660\"\n   |\n 2 | mode = \"rw\"\n   |        ^\n\n1 problem\n"
        );
    }

    #[test]
    fn nothing_wrong_is_said_in_one_line() {
        assert_eq!(report(Path::new("a"), "", &[]), "a is in order\n");
    }
}
