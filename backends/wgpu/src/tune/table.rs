//! Tables of plans that were the fastest when they were timed: JSON that can be shipped, and merged.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::adapter::AdapterFacts;
use crate::device::Tier;
use crate::error::Error;

/// What a table says it is.
const FORMAT: &str = "cupola tuning table";

/// The version of tables that this release reads and writes.
const VERSION: u32 = 1;

/// Bytes of the largest table that is read: some hundred thousand problems.
const LARGEST: u64 = 64 << 20;

/// Plans by device and class of problem.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    format: String,
    version: u32,
    /// Those of each device.
    pub devices: Vec<DevicePlans>,
}

/// Plans of one adapter with one driver.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DevicePlans {
    /// The device.
    pub device: TunedDevice,
    /// The winner of each class of problem.
    pub problems: BTreeMap<String, Winner>,
}

/// What a device's times depend on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TunedDevice {
    /// Name of the adapter.
    pub adapter: String,
    /// Driver and its version.
    pub driver: String,
    /// Graphics interface.
    pub interface: String,
    /// How much of the adapter is used.
    pub tier: String,
}

impl TunedDevice {
    /// An adapter at a tier.
    pub fn new(facts: &AdapterFacts, tier: Tier) -> Self {
        Self {
            adapter: facts.name.clone(),
            driver: facts.driver.clone(),
            interface: facts.interface.name().to_owned(),
            tier: tier.name().to_owned(),
        }
    }
}

/// The plan that won a contest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Winner {
    /// Its name.
    pub plan: String,
    /// Seconds of a run.
    pub seconds: f64,
    /// The plan that was predicted to win.
    pub predicted: String,
    /// Seconds that one took.
    pub predicted_seconds: f64,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            format: FORMAT.to_owned(),
            version: VERSION,
            devices: Vec::new(),
        }
    }
}

impl Table {
    /// Reads a table; `place` is its name in errors.
    ///
    /// # Errors
    /// [`Error::Table`] for anything that is no sound table of a version known here.
    pub fn parse(text: &str, place: &str) -> Result<Self, Error> {
        let error = |reason: String| Error::Table {
            place: place.to_owned(),
            reason,
        };
        let json: serde_json::Value =
            serde_json::from_str(text).map_err(|e| error(format!("it is no JSON: {e}")))?;
        if json["format"] != FORMAT {
            return Err(error("it is no tuning table".to_owned()));
        }
        if json["version"] != VERSION {
            let found = &json["version"];
            let what = format!("it has version {found}, known is {VERSION}");
            return Err(error(what));
        }
        let table: Self = serde_json::from_value(json).map_err(|e| error(e.to_string()))?;
        let winners = (table.devices.iter()).flat_map(|device| &device.problems);
        for (class, winner) in winners {
            let times = [winner.seconds, winner.predicted_seconds];
            if !times.iter().all(|t| t.is_finite() && *t > 0.0) {
                return Err(error(format!("'{class}' took no time")));
            }
        }
        Ok(table)
    }

    /// Reads a file; one that is not there is an empty table.
    ///
    /// # Errors
    /// As [`Self::parse`], and for a file that cannot be read.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let file = match fs::File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(e) => return Err(file_error(path, &e)),
        };
        let mut text = String::new();
        match file.take(LARGEST + 1).read_to_string(&mut text) {
            Ok(size) if size as u64 > LARGEST => {
                Err(file_error(path, &io::Error::other("it is too large")))
            }
            Ok(_) => Self::parse(&text, &path.display().to_string()),
            Err(e) => Err(file_error(path, &e)),
        }
    }

    /// As text, which [`Self::parse`] reads.
    pub fn text(&self) -> String {
        // Maps with text as keys and finite numbers can always be written.
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }

    /// Writes a file, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Table`] where that is not possible; a file that was there stays as it was.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        let mut part = path.as_os_str().to_owned();
        part.push(format!(".{}.part", std::process::id()));
        let part = Path::new(&part);
        let written = fs::File::create(part)
            .and_then(|mut file| file.write_all(self.text().as_bytes()))
            .and_then(|()| fs::rename(part, path));
        written.map_err(|e| {
            // It may not even have been begun.
            let _ = fs::remove_file(part);
            file_error(path, &e)
        })
    }

    /// Adds what another table knows. Of two winners of one class on one device the faster stays.
    pub fn merge(&mut self, other: Self) {
        for DevicePlans { device, problems } in other.devices {
            for (class, winner) in problems {
                self.add(&device, &class, winner);
            }
        }
    }

    /// Adds a winner, unless a faster one is known.
    pub fn add(&mut self, device: &TunedDevice, class: &str, winner: Winner) {
        let known = self.devices.iter().position(|d| d.device == *device);
        let at = known.unwrap_or_else(|| {
            self.devices.push(DevicePlans {
                device: device.clone(),
                problems: BTreeMap::new(),
            });
            self.devices.len() - 1
        });
        let problems = &mut self.devices[at].problems;
        match problems.get_mut(class) {
            Some(old) if old.seconds <= winner.seconds => {}
            Some(old) => *old = winner,
            None => {
                problems.insert(class.to_owned(), winner);
            }
        }
    }

    /// Winners of a device by class.
    pub fn of(&self, device: &TunedDevice) -> Option<&BTreeMap<String, Winner>> {
        let found = self.devices.iter().find(|d| d.device == *device);
        found.map(|d| &d.problems)
    }
}

fn file_error(path: &Path, error: &io::Error) -> Error {
    Error::Table {
        place: path.display().to_string(),
        reason: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(adapter: &str) -> TunedDevice {
        TunedDevice {
            adapter: adapter.to_owned(),
            driver: "1.0".to_owned(),
            interface: "vulkan".to_owned(),
            tier: "full".to_owned(),
        }
    }

    fn winner(plan: &str, seconds: f64) -> Winner {
        Winner {
            plan: plan.to_owned(),
            seconds,
            predicted: "p".to_owned(),
            predicted_seconds: 2.0 * seconds,
        }
    }

    #[test]
    fn tables_survive_being_written() {
        let mut table = Table::default();
        table.add(
            &device("a \"quoted\" name"),
            "product 1",
            winner("x", 1.25e-6),
        );
        table.add(&device("b"), "product 2", winner("y", 0.5));
        assert_eq!(Table::parse(&table.text(), "here"), Ok(table));
    }

    #[test]
    fn the_faster_winner_stays() {
        let (mut left, mut right) = (Table::default(), Table::default());
        left.add(&device("a"), "1", winner("left", 1.0));
        left.add(&device("a"), "2", winner("left", 2.0));
        right.add(&device("a"), "1", winner("right", 2.0));
        right.add(&device("a"), "2", winner("right", 1.0));
        right.add(&device("a"), "3", winner("right", 1.0));
        right.add(&device("b"), "1", winner("right", 1.0));
        let mut other = right.clone();
        other.merge(left.clone());
        left.merge(right);
        let plans = |table: &Table, adapter: &str| -> Vec<String> {
            let problems = table.of(&device(adapter)).expect("a device");
            problems.values().map(|w| w.plan.clone()).collect()
        };
        for table in [&left, &other] {
            assert_eq!(plans(table, "a"), ["left", "right", "right"]);
            assert_eq!(plans(table, "b"), ["right"]);
            assert_eq!(table.of(&device("c")), None);
        }
    }

    #[test]
    fn what_is_no_table_is_refused() {
        let mut table = Table::default();
        table.add(&device("a"), "1", winner("x", 1.0));
        let sound = table.text();
        for (damaged, said) in [
            (sound[..sound.len() - 3].to_owned(), "no JSON"),
            ("[]".to_owned(), "no tuning table"),
            (
                sound.replace("\"version\": 1", "\"version\": 9"),
                "version 9",
            ),
            (sound.replace("\"plan\"", "\"plane\""), "plane"),
            (
                sound.replace("\"seconds\": 1.0", "\"seconds\": -1.0"),
                "took no time",
            ),
            (
                sound.replace("\"seconds\": 1.0", "\"seconds\": \"1\""),
                "f64",
            ),
        ] {
            assert_ne!(damaged, sound);
            let error = Table::parse(&damaged, "here").expect_err(said).to_string();
            assert!(error.starts_with("tuning table here: "), "{error}");
            assert!(error.contains(said) && !error.contains('\n'), "{error}");
        }
    }
}
