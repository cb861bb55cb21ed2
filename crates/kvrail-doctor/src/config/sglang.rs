//! SGLang: `--disaggregation-…` and the variable that names NIXL's backend.
//!
//! <https://docs.sglang.io/advanced_features/pd_disaggregation.html>

use super::{Ask, Facts, Refusal, Role, Settings};

/// Where a prefill worker listens for decode workers, as in SGLang's own default.
const BOOTSTRAP_PORT: u16 = 8998;

pub(super) fn add(settings: &mut Settings, _: &Facts, ask: &Ask, program: &[&str]) -> Result<(), Refusal> {
    let mode = match ask.role {
        Role::Prefill => "prefill",
        Role::Decode => "decode",
        Role::Both => {
            return Err(Refusal::Usage(
                "a worker of SGLang is for prefill or for decode: --role prefill or --role decode".into(),
            ));
        }
    };
    settings.program = program.iter().map(ToString::to_string).collect();
    settings.program.extend(["--model-path".into(), "$MODEL".into()]);
    settings.set(
        "SGLANG_DISAGGREGATION_NIXL_BACKEND",
        settings.backend.nixl_name(),
        "upper case, as NIXL compares it; UCX without it",
    );
    settings.flag("--disaggregation-mode", mode, "as asked for");
    settings.flag(
        "--disaggregation-transfer-backend",
        "nixl",
        "the default is Mooncake; --disaggregation-ib-device is Mooncake's too, and NIXL's backend takes its devices from the variables above",
    );
    settings.flag(
        "--host",
        "0.0.0.0",
        "the default, 127.0.0.1, is out of reach for the router and the other workers",
    );
    if ask.role == Role::Prefill {
        settings.flag(
            "--disaggregation-bootstrap-port",
            BOOTSTRAP_PORT.to_string(),
            "where decode workers ask for the way; each prefill worker of one host needs its own",
        );
    }
    if let Some(size) = ask.tensor_parallel {
        settings.flag("--tp-size", size.to_string(), "as asked for");
    }
    if ask.differs() {
        settings.warnings.push(
            "SGLang transfers between unequal tensor-parallel sizes for some models only: test yours".into(),
        );
    }
    Ok(())
}
