//! NIXL's enums. They compare with their own kind only, turn into integers, and print like Python's.

use kvrail_nixl::Direction;
use kvrail_nixl::list::MemoryKind;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

macro_rules! enums {
    ($($(#[$doc:meta])* $rust:ident = $python:literal { $($variant:ident = $name:literal $code:literal,)+ })+) => {
        $(
            $(#[$doc])*
            #[pyclass(name = $python, module = "kvrail.nixl._bindings", frozen, eq, hash, from_py_object)]
            #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
            pub(crate) enum $rust {
                $(#[pyo3(name = $name)] $variant,)+
            }

            impl $rust {
                const ALL: &[(Self, &'static str, i32)] = &[$((Self::$variant, $name, $code),)+];
            }

            #[pymethods]
            impl $rust {
                #[new]
                fn new(value: i32) -> PyResult<Self> {
                    let found = Self::ALL.iter().find(|(_, _, code)| *code == value);
                    found.map(|(one, ..)| *one).ok_or_else(|| {
                        PyValueError::new_err(format!(concat!("{} is not a ", $python), value))
                    })
                }

                /// The name.
                #[getter]
                fn name(&self) -> &'static str {
                    Self::ALL.iter().find(|(one, ..)| one == self).map_or("", |(_, name, _)| name)
                }

                /// The number.
                #[getter]
                fn value(&self) -> i32 {
                    Self::ALL.iter().find(|(one, ..)| one == self).map_or(0, |(.., code)| *code)
                }

                fn __int__(&self) -> i32 {
                    self.value()
                }

                fn __index__(&self) -> i32 {
                    self.value()
                }

                fn __str__(&self) -> String {
                    format!(concat!($python, ".{}"), self.name())
                }

                fn __repr__(&self) -> String {
                    format!(concat!("<", $python, ".{}: {}>"), self.name(), self.value())
                }

                fn __reduce__<'py>(&self, py: Python<'py>) -> (Bound<'py, pyo3::types::PyType>, (i32,)) {
                    (py.get_type::<Self>(), (self.value(),))
                }

                #[classattr]
                fn __members__(py: Python<'_>) -> PyResult<Py<PyDict>> {
                    let members = PyDict::new(py);
                    for (one, name, _) in Self::ALL {
                        members.set_item(name, *one)?;
                    }
                    Ok(members.unbind())
                }
            }
        )+

        /// Adds the classes, and their members as constants.
        pub(super) fn add(module: &Bound<'_, PyModule>) -> PyResult<()> {
            $(
                module.add_class::<$rust>()?;
                for (one, name, _) in $rust::ALL {
                    module.add(*name, *one)?;
                }
            )+
            // An alias, as in the enum of NIXL.
            let modes = module.getattr("nixl_thread_sync_t")?;
            module.add("NIXL_THREAD_SYNC_DEFAULT", ThreadSync::None)?;
            modes.setattr("NIXL_THREAD_SYNC_DEFAULT", ThreadSync::None)?;
            modes.getattr("__members__")?.set_item("NIXL_THREAD_SYNC_DEFAULT", ThreadSync::None)
        }
    };
}

enums! {
    /// How calls of several threads are kept apart. kvrail's agents may be called from any thread in every mode.
    ThreadSync = "nixl_thread_sync_t" {
        None = "NIXL_THREAD_SYNC_NONE" 0,
        Strict = "NIXL_THREAD_SYNC_STRICT" 1,
        Rw = "NIXL_THREAD_SYNC_RW" 2,
    }
    /// Kinds of memory.
    Memory = "nixl_mem_t" {
        Dram = "DRAM_SEG" 0,
        Vram = "VRAM_SEG" 1,
        Block = "BLK_SEG" 2,
        Object = "OBJ_SEG" 3,
        File = "FILE_SEG" 4,
    }
    /// Directions of a transfer.
    Operation = "nixl_xfer_op_t" {
        Read = "NIXL_READ" 0,
        Write = "NIXL_WRITE" 1,
    }
    /// How a cost was estimated.
    CostMethod = "nixl_cost_t" {
        Analytical = "NIXL_COST_ANALYTICAL_BACKEND" 0,
    }
    /// Results of a call.
    Outcome = "nixl_status_t" {
        InProgress = "NIXL_IN_PROG" 1,
        Success = "NIXL_SUCCESS" 0,
        NotPosted = "NIXL_ERR_NOT_POSTED" -1,
        InvalidParam = "NIXL_ERR_INVALID_PARAM" -2,
        Backend = "NIXL_ERR_BACKEND" -3,
        NotFound = "NIXL_ERR_NOT_FOUND" -4,
        Mismatch = "NIXL_ERR_MISMATCH" -5,
        NotAllowed = "NIXL_ERR_NOT_ALLOWED" -6,
        RepostActive = "NIXL_ERR_REPOST_ACTIVE" -7,
        Unknown = "NIXL_ERR_UNKNOWN" -8,
        NotSupported = "NIXL_ERR_NOT_SUPPORTED" -9,
    }
}

impl From<Memory> for MemoryKind {
    fn from(memory: Memory) -> Self {
        match memory {
            Memory::Dram => Self::Dram,
            Memory::Vram => Self::Vram,
            Memory::Block => Self::Block,
            Memory::Object => Self::Object,
            Memory::File => Self::File,
        }
    }
}

impl From<MemoryKind> for Memory {
    fn from(kind: MemoryKind) -> Self {
        match kind {
            MemoryKind::Dram => Self::Dram,
            MemoryKind::Vram => Self::Vram,
            MemoryKind::Block => Self::Block,
            MemoryKind::Object => Self::Object,
            MemoryKind::File => Self::File,
        }
    }
}

impl From<Operation> for Direction {
    fn from(operation: Operation) -> Self {
        match operation {
            Operation::Read => Self::Read,
            Operation::Write => Self::Write,
        }
    }
}

impl Outcome {
    /// The enum's member for a call that may not be done yet.
    pub(super) fn done(done: bool) -> Self {
        if done { Self::Success } else { Self::InProgress }
    }
}
