//! A page of metrics, in the Prometheus text format (version 0.0.4) or as OpenMetrics text (version 1.0.0).
//!
//! The formats differ in what a counter's family is called and in how a page ends. Names, help texts and label names
//! are our own words; label values are escaped.

use std::fmt::{Display, Write};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Prometheus,
    OpenMetrics,
}

impl Form {
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Families one after the other, each with its samples.
pub struct Page {
    form: Form,
    text: String,
}

pub type Labels<'a> = &'a [(&'a str, &'a str)];

// Writing to a String cannot fail, so results are dropped here.
impl Page {
    pub fn new(form: Form) -> Self {
        Self {
            form,
            text: String::new(),
        }
    }

    /// The whole page.
    pub fn finish(mut self) -> String {
        if self.form == Form::OpenMetrics {
            self.text.push_str("# EOF\n");
        }
        self.text
    }

    /// A family of counters, named without `_total`; its samples are [`total`](Self::total)s.
    pub fn counter(&mut self, name: &str, help: &str) {
        match self.form {
            Form::Prometheus => self.head(&format!("{name}_total"), help, "counter"),
            Form::OpenMetrics => self.head(name, help, "counter"),
        }
    }

    /// A family of counters by somebody else's name, which need not end as OpenMetrics wants; its samples are
    /// [`value`](Self::value)s.
    pub fn foreign_counter(&mut self, name: &str, help: &str) {
        match self.form {
            Form::Prometheus => self.head(name, help, "counter"),
            Form::OpenMetrics => self.head(name, help, "unknown"),
        }
    }

    pub fn gauge(&mut self, name: &str, help: &str) {
        self.head(name, help, "gauge");
    }

    pub fn histogram(&mut self, name: &str, help: &str) {
        self.head(name, help, "histogram");
    }

    fn head(&mut self, name: &str, help: &str, kind: &str) {
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// One counter of the family `name`.
    pub fn total(&mut self, name: &str, labels: Labels<'_>, value: impl Display) {
        self.sample(name, "_total", labels, None, value);
    }

    pub fn value(&mut self, name: &str, labels: Labels<'_>, value: impl Display) {
        self.sample(name, "", labels, None, value);
    }

    /// One histogram: how many were at most as large as each bound, how many in all, and their sum.
    pub fn buckets(
        &mut self,
        name: &str,
        labels: Labels<'_>,
        cumulative: impl Iterator<Item = (f64, u64)>,
        count: u64,
        sum: f64,
    ) {
        for (bound, at_most) in cumulative {
            let bound = canonical(bound);
            self.sample(name, "_bucket", labels, Some(("le", &bound)), at_most);
        }
        self.sample(name, "_bucket", labels, Some(("le", "+Inf")), count);
        self.sample(name, "_sum", labels, None, sum);
        self.sample(name, "_count", labels, None, count);
    }

    fn sample(
        &mut self,
        name: &str,
        suffix: &str,
        labels: Labels<'_>,
        last: Option<(&str, &str)>,
        value: impl Display,
    ) {
        self.text.push_str(name);
        self.text.push_str(suffix);
        let labels = labels.iter().copied().chain(last);
        let any = labels.clone().next().is_some();
        for (position, (label, value)) in labels.enumerate() {
            self.text.push(if position == 0 { '{' } else { ',' });
            let _ = write!(self.text, "{label}=\"");
            for c in value.chars() {
                match c {
                    '\\' => self.text.push_str("\\\\"),
                    '"' => self.text.push_str("\\\""),
                    '\n' => self.text.push_str("\\n"),
                    c => self.text.push(c),
                }
            }
            self.text.push('"');
        }
        if any {
            self.text.push('}');
        }
        let _ = writeln!(self.text, " {value}");
    }
}

/// A bound as OpenMetrics wants it written (and Go writes it), in both forms: `0.5`, `1.0`, `1e-05`, `5e+06`.
fn canonical(bound: f64) -> String {
    if (1e-4..1e6).contains(&bound) {
        return format!("{bound:?}");
    }
    let text = format!("{bound:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    match exponent.strip_prefix('-') {
        Some(exponent) => format!("{digits}e-{exponent:0>2}"),
        None => format!("{digits}e+{exponent:0>2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_forms_differ_where_they_must_and_values_are_escaped() {
        let text = |form| {
            let mut page = Page::new(form);
            page.counter("requests", "Asked.");
            page.total("requests", &[("who", "a\"b\\c\nd")], 3);
            page.gauge("up", "1.");
            page.value("up", &[], 1);
            page.histogram("seconds", "Spent.");
            let bounds = [(0.000025, 1), (1.0, 2), (5e6, 2)];
            page.buckets("seconds", &[("m", "x")], bounds.into_iter(), 4, 9.25);
            page.finish()
        };
        let rest = "requests_total{who=\"a\\\"b\\\\c\\nd\"} 3\n\
            # HELP up 1.\n# TYPE up gauge\nup 1\n\
            # HELP seconds Spent.\n# TYPE seconds histogram\n\
            seconds_bucket{m=\"x\",le=\"2.5e-05\"} 1\nseconds_bucket{m=\"x\",le=\"1.0\"} 2\n\
            seconds_bucket{m=\"x\",le=\"5e+06\"} 2\n\
            seconds_bucket{m=\"x\",le=\"+Inf\"} 4\nseconds_sum{m=\"x\"} 9.25\nseconds_count{m=\"x\"} 4\n";
        assert_eq!(
            text(Form::Prometheus),
            format!("# HELP requests_total Asked.\n# TYPE requests_total counter\n{rest}")
        );
        assert_eq!(
            text(Form::OpenMetrics),
            format!("# HELP requests Asked.\n# TYPE requests counter\n{rest}# EOF\n")
        );
    }
}
