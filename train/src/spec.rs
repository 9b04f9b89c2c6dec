//! Short descriptions in text: `adam:lr=1e-3,amsgrad`, `conv:32,kernel=3`, as configurations and the command line have
//! them for layers, losses, optimisers and schedules.

use crate::error::{Result, TrainError};
use std::cell::RefCell;
use std::fmt;

/// `name[:value,...,key=value,...,flag,...]`, taken apart. What is asked for is ticked off; [`Spec::finish`] refuses the
/// rest, so that no mistyped key is passed over.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The word before the colon.
    pub name: String,
    text: String,
    values: Vec<String>,
    settings: Vec<(String, String)>,
    unused: RefCell<Vec<String>>,
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Spec {
    /// Takes a text apart.
    ///
    /// # Errors
    /// An empty name or part, a key that is there twice, a bare value after a key.
    pub fn parse(text: &str) -> Result<Spec> {
        let wrong = |what: &str| TrainError::Options(format!("'{text}': {what}"));
        let (name, rest) = text.split_once(':').unwrap_or((text, ""));
        let name = name.trim().to_string();
        if name.is_empty() {
            return Err(wrong("a name is missing, as in adam:lr=1e-3"));
        }
        if name.contains([',', '=']) {
            return Err(wrong("a colon stands after the name, as in adam:lr=1e-3"));
        }
        let (mut values, mut settings) = (vec![], vec![]);
        for part in rest.split(',').map(str::trim) {
            if part.is_empty() {
                if rest.trim().is_empty() {
                    continue;
                }
                return Err(wrong("nothing stands between two commas"));
            }
            let Some((key, value)) = part.split_once('=') else {
                if !settings.is_empty() {
                    return Err(wrong(&format!("'{part}' has no value, as in {part}=1")));
                }
                values.push(part.to_string());
                continue;
            };
            let (key, value) = (key.trim().to_string(), value.trim().to_string());
            if settings.iter().any(|(k, _)| *k == key) {
                return Err(wrong(&format!("'{key}' is there twice")));
            }
            settings.push((key, value));
        }
        let keys = settings.iter().map(|(k, _): &(String, String)| k.clone());
        let unused = values.iter().cloned().chain(keys).collect();
        Ok(Spec {
            name,
            text: text.trim().to_string(),
            values,
            settings,
            unused: RefCell::new(unused),
        })
    }

    fn tick(&self, word: &str) {
        let mut unused = self.unused.borrow_mut();
        if let Some(at) = unused.iter().position(|u| u == word) {
            unused.remove(at);
        }
    }

    /// What is written for a key, or in its place: values without keys stand for `keys` in order.
    pub fn text(&self, key: &str, place: Option<usize>) -> Option<&str> {
        if let Some((_, value)) = self.settings.iter().find(|(k, _)| k == key) {
            self.tick(key);
            return Some(value);
        }
        let value = self.values.get(place?)?;
        self.tick(value);
        Some(value)
    }

    fn wrong(&self, key: &str, value: &str, wanted: &str) -> TrainError {
        let text = &self.text;
        TrainError::Options(format!("'{text}': {key} is '{value}', not {wanted}"))
    }

    /// A number, or `usual`.
    ///
    /// # Errors
    /// What is no finite number.
    pub fn number(&self, key: &str, place: Option<usize>, usual: f64) -> Result<f64> {
        let Some(text) = self.text(key, place) else {
            return Ok(usual);
        };
        let value = text.parse::<f64>().ok().filter(|v| v.is_finite());
        value.ok_or_else(|| self.wrong(key, text, "a number"))
    }

    /// A whole number, if it is there.
    ///
    /// # Errors
    /// What is no whole number.
    pub fn count(&self, key: &str, place: Option<usize>) -> Result<Option<usize>> {
        self.text(key, place)
            .map(|text| {
                let value = text.parse::<usize>();
                value.map_err(|_| self.wrong(key, text, "a whole number"))
            })
            .transpose()
    }

    /// A whole number that must be there. Words stand for numbers that are known elsewhere.
    ///
    /// # Errors
    /// Nothing, or what is neither.
    pub fn size(&self, key: &str, place: Option<usize>, words: &[(&str, usize)]) -> Result<usize> {
        let Some(text) = self.text(key, place) else {
            let what = format!("'{}': {key} is missing, as in {key}=64", self.text);
            return Err(TrainError::Options(what));
        };
        if let Some((_, value)) = words.iter().find(|(w, _)| *w == text) {
            return Ok(*value);
        }
        text.parse().map_err(|_| {
            let known: Vec<&str> = words.iter().map(|w| w.0).collect();
            let wanted = match known.is_empty() {
                true => "a whole number".to_string(),
                false => format!("a whole number or one of {}", known.join(", ")),
            };
            self.wrong(key, text, &wanted)
        })
    }

    /// Whether a bare word is there, or `key=true`.
    ///
    /// # Errors
    /// Another value than true or false.
    pub fn flag(&self, key: &str, usual: bool) -> Result<bool> {
        if self.values.iter().any(|v| v == key) {
            self.tick(key);
            return Ok(true);
        }
        match self.text(key, None) {
            None => Ok(usual),
            Some("true") => Ok(true),
            Some("false") => Ok(false),
            Some(other) => Err(self.wrong(key, other, "true or false")),
        }
    }

    /// Refuses what nobody asked for.
    ///
    /// # Errors
    /// The first such word.
    pub fn finish(&self) -> Result<()> {
        match self.unused.borrow().first() {
            None => Ok(()),
            Some(word) => {
                let what = format!("'{}': '{word}' means nothing here", self.text);
                Err(TrainError::Options(what))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_taken_apart() {
        let spec = Spec::parse("conv: 32, kernel=3, bias=false").expect("a layer");
        assert_eq!((spec.name.as_str(), spec.to_string().len()), ("conv", 30));
        assert_eq!(spec.size("channels", Some(0), &[]), Ok(32));
        assert_eq!(spec.count("kernel", Some(1)), Ok(Some(3)));
        assert_eq!(spec.count("stride", None), Ok(None));
        assert!(spec.finish().is_err());
        assert_eq!(spec.flag("bias", true), Ok(false));
        assert_eq!(spec.finish(), Ok(()));
        let spec = Spec::parse("adam:amsgrad,lr=1e-3").expect("an optimiser");
        assert_eq!(spec.flag("amsgrad", false), Ok(true));
        assert_eq!(spec.number("lr", None, 1.0), Ok(1e-3));
        assert_eq!(spec.finish(), Ok(()));
        let spec = Spec::parse("linear:classes").expect("a layer");
        assert_eq!(spec.size("outputs", Some(0), &[("classes", 8)]), Ok(8));
    }

    #[test]
    fn mistakes_are_named() {
        let error = |text: &str| Spec::parse(text).expect_err(text).to_string();
        assert!(error(":3").contains("a name is missing"));
        assert!(error("a,lr=1").contains("a colon stands after"));
        assert!(error("a:1,,2").contains("between two commas"));
        assert!(error("a:k=1,k=2").contains("'k' is there twice"));
        assert!(error("a:k=1,b").contains("'b' has no value"));
        let spec = Spec::parse("sgd:lr=fast,momentm=0.9").expect("words");
        let error = spec
            .number("lr", None, 0.1)
            .expect_err("no number")
            .to_string();
        assert_eq!(
            error,
            "'sgd:lr=fast,momentm=0.9': lr is 'fast', not a number"
        );
        let error = spec.finish().expect_err("mistyped").to_string();
        assert!(error.ends_with("'momentm' means nothing here"));
        let error = spec
            .size("width", None, &[])
            .expect_err("missing")
            .to_string();
        assert!(error.contains("width is missing"));
    }
}
