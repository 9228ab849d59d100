//! When this device may take new versions: windows of the week, in its own time.

use std::str::FromStr;

use jiff::civil::Weekday;
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp, ToSpan, Zoned};
use serde::Deserialize;

const DAYS: [(&str, Weekday); 7] = [
    ("mon", Weekday::Monday),
    ("tue", Weekday::Tuesday),
    ("wed", Weekday::Wednesday),
    ("thu", Weekday::Thursday),
    ("fri", Weekday::Friday),
    ("sat", Weekday::Saturday),
    ("sun", Weekday::Sunday),
];
const HOUR: u32 = 60;
const DAY: u32 = 24 * HOUR;
/// Every window opens within so many days.
const AHEAD: i64 = 8;

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Maintenance {
    /// None: at any time.
    pub windows: Vec<Window>,
    /// Absent: that of the system.
    pub time_zone: Option<Zone>,
}

/// Such as `mon-fri 22:00-05:00`; one that ends before it begins ends on the next day.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Window {
    days: Vec<Weekday>,
    /// Minutes of the day.
    from: u32,
    to: u32,
}

/// A name such as `Europe/Berlin`, found in the system's time zone database, or a rule as in POSIX TZ.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "String")]
pub struct Zone(TimeZone);

impl Maintenance {
    /// When the next window opens; `None` while one is open, or if there are none.
    pub fn opens(&self, now: Timestamp) -> Option<Zoned> {
        let zone = self
            .time_zone
            .as_ref()
            .map_or_else(TimeZone::system, |zone| zone.0.clone());
        let now = now.to_zoned(zone);
        let mut next: Option<Zoned> = None;
        // A window of yesterday may still be open.
        for ahead in -1..=AHEAD {
            let day = now.date().saturating_add(ahead.days());
            let windows = self
                .windows
                .iter()
                .filter(|w| w.days.contains(&day.weekday()));
            for window in windows {
                let at = |minutes: u32| {
                    let time = day.at(0, 0, 0, 0).saturating_add(span(minutes));
                    time.to_zoned(now.time_zone().clone()).ok()
                };
                let length = if window.to > window.from { 0 } else { DAY };
                let (Some(from), Some(to)) = (at(window.from), at(window.to + length)) else {
                    continue;
                };
                if from <= now && now < to {
                    return None;
                }
                if from > now && next.as_ref().is_none_or(|next| from < *next) {
                    next = Some(from);
                }
            }
        }
        next
    }
}

fn span(minutes: u32) -> Span {
    i64::from(minutes).minutes()
}

impl FromStr for Window {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse(text).ok_or_else(|| {
            format!("{text:?} is no window of the week such as \"mon-fri 22:00-05:00\" or \"sun 00:00-24:00\"")
        })
    }
}

fn parse(text: &str) -> Option<Window> {
    let (days, hours) = text.trim().split_once(' ')?;
    let place = |name: &str| DAYS.iter().position(|(day, _)| *day == name);
    let (first, last) = days.split_once('-').unwrap_or((days, days));
    let (first, last) = (place(first)?, place(last)?);
    let count = (last + DAYS.len() - first) % DAYS.len() + 1;
    let days = DAYS.iter().cycle().skip(first).take(count);
    let (from, to) = hours.trim().split_once('-')?;
    let (from, to) = (minutes(from)?, minutes(to)?);
    (from < DAY).then(|| Window {
        days: days.map(|(_, day)| *day).collect(),
        from,
        to,
    })
}

fn minutes(text: &str) -> Option<u32> {
    let (hours, minutes) = text.split_once(':')?;
    let digits = |text: &str| text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit());
    if !digits(hours) || !digits(minutes) {
        return None;
    }
    let (hours, minutes): (u32, u32) = (hours.parse().ok()?, minutes.parse().ok()?);
    let whole = hours * HOUR + minutes;
    (minutes < HOUR && whole <= DAY).then_some(whole)
}

impl TryFrom<String> for Window {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl TryFrom<String> for Zone {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let found = TimeZone::get(&text).or_else(|_| TimeZone::posix(&text));
        found.map(Self).map_err(|_| {
            format!(
                "this system knows no time zone {text:?} (package tzdata); a rule such as \
                 \"CET-1CEST,M3.5.0,M10.5.0/3\" needs no database"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn maintenance(windows: &[&str]) -> Maintenance {
        Maintenance {
            windows: windows
                .iter()
                .map(|w| w.parse().expect("a window"))
                .collect(),
            time_zone: Some(
                "CET-1CEST,M3.5.0,M10.5.0/3"
                    .to_owned()
                    .try_into()
                    .expect("a zone"),
            ),
        }
    }

    /// When the next one opens, as the clock on the wall shows it.
    fn opens(maintenance: &Maintenance, now: &str) -> Option<String> {
        let opens = maintenance.opens(now.parse().expect("a moment"))?;
        Some(opens.strftime("%a %H:%M").to_string())
    }

    #[test]
    fn a_window_is_of_the_devices_own_time_and_may_last_beyond_midnight() {
        let nights = maintenance(&["mon-fri 22:00-05:00"]);
        // A Wednesday in winter: an hour ahead of UTC.
        assert_eq!(
            opens(&nights, "2026-01-14T20:59:59Z").as_deref(),
            Some("Wed 22:00")
        );
        assert_eq!(opens(&nights, "2026-01-14T21:00:00Z"), None);
        assert_eq!(opens(&nights, "2026-01-15T03:59:59Z"), None);
        assert_eq!(
            opens(&nights, "2026-01-15T04:00:00Z").as_deref(),
            Some("Thu 22:00")
        );
        // In summer two hours; Friday's window ends on Saturday, and the next is Monday's.
        assert_eq!(opens(&nights, "2026-07-17T20:00:00Z"), None);
        assert_eq!(opens(&nights, "2026-07-18T02:59:59Z"), None);
        assert_eq!(
            opens(&nights, "2026-07-18T03:00:00Z").as_deref(),
            Some("Mon 22:00")
        );
    }

    #[test]
    fn the_next_of_several_counts_and_without_any_it_is_always_time() {
        let two = maintenance(&["sun 00:00-24:00", "sat-mon 12:00-13:00"]);
        assert_eq!(
            opens(&two, "2026-01-14T12:00:00Z").as_deref(),
            Some("Sat 12:00")
        );
        assert_eq!(
            opens(&two, "2026-01-17T12:00:00Z").as_deref(),
            Some("Sun 00:00")
        );
        assert_eq!(opens(&two, "2026-01-18T22:59:59Z"), None);
        assert_eq!(
            opens(&two, "2026-01-18T23:00:00Z").as_deref(),
            Some("Mon 12:00")
        );
        assert_eq!(opens(&Maintenance::default(), "2026-01-14T12:00:00Z"), None);
    }

    #[test]
    fn a_clock_that_is_put_forward_over_an_opening_does_not_lose_the_window() {
        let gap = maintenance(&["sun 02:30-04:00"]);
        // Clocks go from 2 to 3: there is no 02:30 on this Sunday.
        assert_eq!(opens(&gap, "2026-03-29T01:45:00Z"), None);
        assert!(opens(&gap, "2026-03-29T00:30:00Z").is_some());
    }

    #[test]
    fn what_is_no_window_or_zone_is_refused_in_plain_words() {
        for text in [
            "",
            "mon",
            "22:00-05:00",
            "mon 22-05",
            "mon 24:00-05:00",
            "mon 22:60-05:00",
            "foo 22:00-05:00",
            "mon-fri-sun 22:00-05:00",
            "mon +1:00-05:00",
            "mon 22:00-25:00",
        ] {
            let error = text.parse::<Window>().expect_err(text);
            assert!(error.contains("mon-fri 22:00-05:00"), "{error}");
        }
        let error = Zone::try_from("Middle/Earth".to_owned()).expect_err("none");
        assert!(error.contains("tzdata"), "{error}");
    }
}
