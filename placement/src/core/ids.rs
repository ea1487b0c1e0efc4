//! Small integers for the things of a problem. Names become these at the door.

/// A missing host, domain or group in the dense arrays.
pub(crate) const NONE: u32 = u32::MAX;

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u32);

        impl $name {
            /// Its place in arrays by this kind of thing.
            pub const fn ix(self) -> usize {
                self.0 as usize
            }
        }

        impl From<usize> for $name {
            /// The thing at this place; the builder bounds every count below `u32::MAX`.
            fn from(ix: usize) -> Self {
                Self(ix as u32)
            }
        }
    )+};
}

ids! {
    /// A host, in the order hosts were added.
    Host,
    /// An item to place: a VM, in the order items were added.
    Item,
    /// A resource, in the order resources were added.
    Resource,
    /// A set of items that rules speak of.
    Group,
    /// A set of hosts that items may or should use.
    HostSet,
    /// A way to cut the hosts into domains: hosts, racks, locations, neighbourhoods.
    Partition,
    /// A rule over groups, in the order rules were added.
    Rule,
}

/// Where an item is: a host, and which of its shapes it has there (its NUMA
/// node or nodes; 0 for items with one shape).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The host.
    pub host: Host,
    /// Index into the item's shapes.
    pub shape: u8,
}

impl Place {
    /// The first shape on a host.
    pub const fn on(host: Host) -> Self {
        Self { host, shape: 0 }
    }

    /// No host: how the dense arrays say "unplaced".
    pub(crate) const NOWHERE: Self = Self { host: Host(NONE), shape: 0 };

    /// Whether it names a host.
    pub const fn is_somewhere(self) -> bool {
        self.host.0 != NONE
    }
}
