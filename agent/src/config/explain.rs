//! Every problem of a configuration file, each with its line.
//!
//! A TOML reader stops at the first value that it cannot take. Here the wrong entry is then taken out and
//! the rest read again, until nothing is left to complain about; the values that could be read are checked
//! by [`Config::check`](super::Config::check).

use std::ops::Range;

use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::Config;

/// Enough for any file written by a person.
const MOST: usize = 200;

/// A problem and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located {
    /// From 1; the table's first line where the entry itself is missing. 0: the file does not mention it.
    pub line: usize,
    pub column: usize,
    /// Keys joined with dots; empty for broken syntax.
    pub key: String,
    pub text: String,
}

/// What is wrong with a configuration's text. Empty: nothing.
pub fn explain(text: &str) -> Vec<Located> {
    let (document, syntax) = DeTable::parse_recoverable(text);
    if !syntax.is_empty() {
        let located = |error: &toml::de::Error| {
            let (line, column) = position(text, error.span());
            Located {
                line,
                column,
                key: String::new(),
                text: error.message().to_owned(),
            }
        };
        return syntax.iter().take(MOST).map(located).collect();
    }

    let mut found = Vec::new();
    let mut invented = Vec::new();
    let mut rest = document.clone();
    let config = loop {
        let error = match Config::deserialize(toml::Deserializer::from(rest.clone())) {
            Ok(config) => break Some(config),
            Err(error) => error,
        };
        let span = error.span().unwrap_or_default();
        let mut path = Vec::new();
        let known = innermost(rest.get_ref(), &span, &mut path);
        let (line, column) = position(text, Some(span));
        found.push(Located {
            line,
            column,
            key: path.join("."),
            text: error.message().trim_end().to_owned(),
        });
        let mended = match missing_field(error.message()) {
            Some(field) => {
                path.push(field.to_owned());
                let mended = invent(rest.get_mut(), &path);
                invented.push(path);
                mended
            }
            None => known && remove(rest.get_mut(), &path),
        };
        if !mended || found.len() == MOST {
            break None;
        }
    };
    for problem in config.map(|config| config.check()).unwrap_or_default() {
        if invented.iter().any(|path| problem.key.starts_with(path)) {
            continue;
        }
        let span = span_of(document.get_ref(), &problem.key);
        let (line, column) = span.map_or((0, 0), |span| position(text, Some(span)));
        found.push(Located {
            line,
            column,
            key: problem.key.join("."),
            text: problem.text,
        });
    }
    found.sort_by_key(|problem| (problem.line, problem.column));
    found
}

/// Line and column, both from 1, of a byte range's start.
fn position(text: &str, span: Option<Range<usize>>) -> (usize, usize) {
    let at = span.map_or(0, |span| span.start).min(text.len());
    let before = &text.as_bytes()[..at];
    let line_start = before
        .iter()
        .rposition(|b| *b == b'\n')
        .map_or(0, |i| i + 1);
    let line = before.iter().filter(|b| **b == b'\n').count() + 1;
    let column = String::from_utf8_lossy(&before[line_start..])
        .chars()
        .count()
        + 1;
    (line, column)
}

fn missing_field(message: &str) -> Option<&str> {
    let rest = message.strip_prefix("missing field `")?;
    rest.split('`').next()
}

/// The path of the innermost entry whose key or value covers `span`. `false`: there is none.
fn innermost(table: &DeTable<'_>, span: &Range<usize>, path: &mut Vec<String>) -> bool {
    let covers = |outer: Range<usize>| outer.start <= span.start && span.end <= outer.end;
    // A table's own span is its header or its braces, its entries may stand elsewhere: look inside first.
    for (key, value) in table {
        path.push(key.get_ref().to_string());
        if inside(value.get_ref(), span, path) || covers(key.span()) || covers(value.span()) {
            return true;
        }
        path.pop();
    }
    false
}

fn inside(value: &DeValue<'_>, span: &Range<usize>, path: &mut Vec<String>) -> bool {
    match value {
        DeValue::Table(table) => innermost(table, span, path),
        DeValue::Array(array) => array.iter().enumerate().any(|(index, element)| {
            path.push(index.to_string());
            let outer = element.span();
            let found = inside(element.get_ref(), span, path)
                || (outer.start <= span.start && span.end <= outer.end);
            if !found {
                path.pop();
            }
            found
        }),
        _ => false,
    }
}

/// Applies `change` to the table that holds the last part of `path`.
fn in_parent(
    table: &mut DeTable<'_>,
    path: &[String],
    change: &mut dyn FnMut(&mut DeTable<'_>, &str) -> bool,
) -> bool {
    match path {
        [] => false,
        [last] => change(table, last),
        [first, rest @ ..] => match table.get_mut(first.as_str()).map(Spanned::get_mut) {
            Some(DeValue::Table(table)) => in_parent(table, rest, change),
            Some(DeValue::Array(array)) => {
                let Some(index) = rest.first().and_then(|part| part.parse::<usize>().ok()) else {
                    return false;
                };
                match array.get_mut(index).map(Spanned::get_mut) {
                    Some(DeValue::Table(table)) if rest.len() > 1 => {
                        in_parent(table, &rest[1..], change)
                    }
                    _ => false,
                }
            }
            _ => false,
        },
    }
}

fn remove(table: &mut DeTable<'_>, path: &[String]) -> bool {
    // An element of a list cannot be taken out alone without moving the others: the whole list goes.
    (1..=path.len()).rev().any(|length| {
        in_parent(table, &path[..length], &mut |table, key| {
            table.remove(key).is_some()
        })
    })
}

/// Puts a value where a needed one is missing, so that the rest can be read. What it is does not matter, its
/// own problems are not shown.
fn invent(table: &mut DeTable<'_>, path: &[String]) -> bool {
    in_parent(table, path, &mut |table, key| {
        let value = if key == "listen" { "127.0.0.1:1" } else { "" };
        let key = Spanned::new(0..0, DeString::Owned(key.to_owned()));
        let value = Spanned::new(0..0, DeValue::String(DeString::Borrowed(value)));
        table.insert(key, value).is_none()
    })
}

/// Where the value of a key stands, or its innermost table that does.
fn span_of(table: &DeTable<'_>, path: &[String]) -> Option<Range<usize>> {
    let (first, rest) = path.split_first()?;
    let (key, value) = table.get_key_value(first.as_str())?;
    let mut span = if rest.is_empty() && !matches!(value.get_ref(), DeValue::Table(_)) {
        value.span()
    } else {
        key.span()
    };
    let mut value = value.get_ref();
    for (depth, part) in rest.iter().enumerate() {
        match value {
            DeValue::Table(table) => {
                return span_of(table, &rest[depth..]).or(Some(span));
            }
            DeValue::Array(array) => {
                let Some(element) = part.parse().ok().and_then(|index: usize| array.get(index))
                else {
                    break;
                };
                span = element.span();
                value = element.get_ref();
            }
            _ => break,
        }
    }
    Some(span)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str) -> Vec<Located> {
        // The library of the default configuration is not on every machine.
        explain(text)
            .into_iter()
            .filter(|problem| problem.key != "tflite.library")
            .collect()
    }

    fn at(text: &str, line: usize) -> Located {
        let found = problems(text);
        let hit = found.iter().find(|problem| problem.line == line);
        hit.unwrap_or_else(|| panic!("line {line} of {found:#?}"))
            .clone()
    }

    #[test]
    fn an_empty_file_is_right() {
        assert_eq!(problems(""), []);
    }

    #[test]
    fn every_problem_is_found_in_one_go_with_its_line() {
        let text = r#"state_directory = "relative"
colour = "blue"

[unix]
modee = "0660"
mode = "rw"
allow_groups = ["root", "no-such-group"]

[limits]
max_body_bytes = "many"
max_connections = 0
default_deadline_ms = 400000

[delegates.xnnpack]
library = "/nowhere/x.so"
options = { place = "{cache}" }

[sandboxx]
[log]
filter = "edgeward=loud"
"#;
        for (line, says) in [
            (1, "absolute"),
            (2, "unknown field `colour`"),
            (5, "unknown field `modee`"),
            (6, "octal"),
            (7, "no-such-group"),
            (10, "invalid type"),
            (11, "between 1 and"),
            (12, "max_deadline_ms"),
            (14, "takes no profile"),
            (15, "/nowhere/x.so"),
            (16, "without the table [delegates.xnnpack.cache]"),
            (18, "unknown field `sandboxx`"),
            (20, "loud"),
        ] {
            let problem = at(text, line);
            assert!(problem.text.contains(says), "line {line}: {problem:?}");
        }
        assert_eq!(problems(text).len(), 13, "{:#?}", problems(text));
    }

    #[test]
    fn a_missing_value_does_not_hide_the_others() {
        let text = "[tls]\ncertificate = \"/nowhere/c.pem\"\n\n[[tls.tokens]]\nsha256 = \"xyz\"\n";
        let found = problems(text);
        let says = |what: &str| found.iter().any(|problem| problem.text.contains(what));
        for what in [
            "missing field `listen`",
            "missing field `private_key`",
            "missing field `name`",
            "/nowhere/c.pem",
            "64 hexadecimal digits",
        ] {
            assert!(says(what), "{what}: {found:#?}");
        }
    }

    #[test]
    fn an_open_door_is_a_problem() {
        let text = "[tls]\nlisten = \"0.0.0.0:443\"\ncertificate = \"/c\"\nprivate_key = \"/k\"\n";
        assert!(at(text, 1).text.contains("without_authentication"));
    }

    #[test]
    fn broken_syntax_is_shown_by_line() {
        assert_eq!(problems("a = 1\nb = \n").first().map(|p| p.line), Some(2));
        let found = problems("[unix\nmode = \"0660\"\n");
        assert_eq!(found.first().map(|p| p.line), Some(1), "{found:?}");
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_explained_in_peace(text in "(\\[|\\]|=|\"|\n|unix|tls|mode|tokens|limits|\\.|[a-z0-9 ,{}]){0,30}") {
            let _ = explain(&text);
        }
    }
}
