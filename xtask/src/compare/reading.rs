//! Reads what an engine reported. The only place that knows the field names, and it asks for few of them: the
//! figures, and whether the bytes were verified.

use serde_json::Value;

/// A figure that every engine can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Metric {
    /// Of the median request, GB/s.
    Bandwidth,
    /// Of the median request, post to completion, µs.
    Latency,
    /// Making one request of the batch ready, µs.
    Prepare,
    /// The call that begins a transfer, until it returns, µs.
    Post,
    /// Creating an agent with its transport, ms.
    CreateAgent,
    /// Registering 10,000 regions, ms.
    Register,
    /// What describes those regions to a peer.
    MetadataBytes,
    /// Importing it, ms.
    Import,
}

impl Metric {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Bandwidth => "bandwidth",
            Self::Latency => "latency p50",
            Self::Prepare => "prepare",
            Self::Post => "post p50",
            Self::CreateAgent => "create an agent",
            Self::Register => "register 10,000 regions",
            Self::MetadataBytes => "metadata",
            Self::Import => "import",
        }
    }

    pub(crate) const fn unit(self) -> &'static str {
        match self {
            Self::Bandwidth => "GB/s",
            Self::Latency | Self::Prepare | Self::Post => "µs",
            Self::CreateAgent | Self::Register | Self::Import => "ms",
            Self::MetadataBytes => "B",
        }
    }
}

/// What one run of one engine reported.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    row: Value,
}

impl Sample {
    /// From an engine's stdout: one JSON document, or JSON lines of which the last one counts.
    pub(crate) fn read(stdout: &str) -> Result<Self, String> {
        let document = serde_json::from_str(stdout).or_else(|_| {
            let last = stdout.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
            serde_json::from_str::<Value>(last)
        });
        let document = document.map_err(|error| format!("its output is no JSON: {error}"))?;
        for key in ["error", "failure"] {
            if let Some(said) = document.get(key).filter(|said| !said.is_null()) {
                return Err(said.as_str().map_or_else(|| said.to_string(), str::to_owned));
            }
        }
        let row = match document.get("results").and_then(|results| results.get(0)) {
            Some(first) => first.clone(),
            None => document,
        };
        if row.get("control").is_none() && row.get("verified").and_then(Value::as_bool) != Some(true) {
            return Err("it does not say that its bytes were verified".into());
        }
        Ok(Self { row })
    }

    /// The figure, where the engine gave it.
    pub(crate) fn figure(&self, metric: Metric) -> Option<f64> {
        match metric {
            // From the median request rather than the engine's own mean: the same rule for all of them.
            Metric::Bandwidth => {
                let bytes = self.number(&["block_bytes"])? * self.number(&["batch"])?;
                Some(bytes / self.number(&["latency_us", "p50"])? / 1e3)
            }
            Metric::Latency => self.number(&["latency_us", "p50"]),
            Metric::Prepare => self.number(&["prepare_us", "p50"]),
            Metric::Post => self.number(&["post_us", "p50"]),
            Metric::CreateAgent => self.number(&["control", "create_agent_ms"]),
            Metric::Register => self.number(&["control", "register_10000_ms"]),
            Metric::MetadataBytes => self.number(&["control", "metadata_bytes"]),
            Metric::Import => self.number(&["control", "import_ms"]),
        }
    }

    /// The version that the engine gave of itself.
    pub(crate) fn version(&self) -> Option<&str> {
        self.row.get("version")?.as_str()
    }

    /// What carried the bytes, where the engine said so.
    pub(crate) fn transport(&self) -> Option<&str> {
        self.row.get("transport")?.as_str()
    }

    /// A number that is not one of the metrics, where the engine gave it.
    pub(crate) fn number(&self, path: &[&str]) -> Option<f64> {
        path.iter().try_fold(&self.row, |value, key| value.get(key))?.as_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_with_results_and_a_json_line_read_the_same() {
        let row = r#"{"block_bytes":32768,"batch":100,"latency_us":{"p50":327.68},"verified":true}"#;
        let document = format!(r#"{{"schema":"kvrail.bench.v1","failure":null,"results":[{row}]}}"#);
        for text in [row.to_owned(), document, format!("{{\"other\":1}}\n{row}\n")] {
            let sample = Sample::read(&text).unwrap();
            assert_eq!(sample.figure(Metric::Bandwidth), Some(10.0));
            assert_eq!(sample.figure(Metric::Prepare), None);
        }
    }

    #[test]
    fn unverified_bytes_a_reported_error_and_noise_are_no_sample() {
        assert!(Sample::read(r#"{"latency_us":{"p50":1}}"#).is_err());
        assert!(Sample::read(r#"{"verified":false}"#).is_err());
        assert_eq!(Sample::read(r#"{"error":"no progress"}"#).unwrap_err(), "no progress");
        assert!(Sample::read("Segmentation fault").is_err());
        assert!(Sample::read("").is_err());
    }

    #[test]
    fn control_figures_need_no_verified_bytes() {
        let sample = Sample::read(r#"{"results":[],"control":{"metadata_bytes":7}}"#).unwrap();
        assert_eq!(sample.figure(Metric::MetadataBytes), Some(7.0));
    }
}
