//! The rules that can be left out one by one in a test build, so that the simulator proves that it
//! would find it. In every other build all are on, and asking costs nothing.

/// A rule of the protocol.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Rule {
    /// P0: a replica that promised refuses older intervals.
    PromiseRefuses,
    /// P0: the promise is durable before it is answered.
    PromiseDurable,
    /// P0: what is on its way in an older interval is durable before the promise is answered.
    PromiseBarrier,
    /// P1: a member of the last activated interval is among those that decide.
    Quorum,
    /// P2: only those that were activated since decide.
    Candidates,
    /// P2: a missing fragment counts with what it must come to hold.
    NeededCounts,
    /// P2: what is not listed by one is asked for.
    AskUnlisted,
    /// P2: who dropped tombstones above the baseline makes all list everything.
    FloorListsAll,
    /// P2: tombstones are listed whatever their age.
    TombstonesListed,
    /// P2: requests beyond the chosen heads are forgotten.
    RequestsOfAuthority,
    /// P3: what differs is missing, not only what is older.
    DiffersIsMissing,
    /// P3: all acting members confirm.
    AllActivate,
    /// P3: missing fragments are durable before the interval is.
    ActivateBarrier,
    /// P4: the registry knows of the activation before anything is served.
    CommitFirst,
    /// P4: leases of the former primary are waited out.
    LeasesOut,
    /// P4: fences and records are read before anything is served.
    FencesFirst,
    /// 6.3 (1): a repeated request is answered from the table.
    RequestTable,
    /// 6.3 (1): a lower number in a slot is refused.
    LowerRefused,
    /// 6.3 (1): a new incarnation of a gateway waits for what the old one has on its way.
    OldIncarnationEnds,
    /// 6.3 (2): records are as new as the gateway's.
    RecordFresh,
    /// 6.3 (2): fenced gateways, locks and vids are refused.
    Fences,
    /// 6.3 (3): no version is given when a member has no space left.
    SpaceFirst,
    /// 6.3 (4): a fragment with too few whole copies is recovered first.
    RequiredCopies,
    /// 6.3 (5): the head before is named, and checked by the replica.
    Chain,
    /// A write up to the tombstone floor is not applied again.
    FloorIsDone,
    /// 6.3 (6): all acting replicas have it before it is answered.
    AllDurable,
    /// A replica takes writes in the process that was activated only.
    ActiveProcess,
    /// Reads need leases of all.
    Leases,
    /// A lease is checked after the bytes were read.
    LeaseAfterRead,
    /// A replica asks the primary to stop before it promises the shard away, or waits.
    LeaseLeftTold,
    /// A replica that restarted reports a full term.
    LeaseAfterStart,
    /// A read waits for the writes that it overlaps.
    ReadWaits,
    /// A deletion leaves a tombstone until all know.
    Tombstones,
    /// What all have is called clean only while nothing is missing.
    CleanWhole,
    /// A fragment takes no writes while it is copied.
    CopyFreezes,
}

impl Rule {
    /// Every rule.
    pub const ALL: [Self; 35] = [
        Self::PromiseRefuses,
        Self::PromiseDurable,
        Self::PromiseBarrier,
        Self::Quorum,
        Self::Candidates,
        Self::NeededCounts,
        Self::AskUnlisted,
        Self::FloorListsAll,
        Self::TombstonesListed,
        Self::RequestsOfAuthority,
        Self::DiffersIsMissing,
        Self::AllActivate,
        Self::ActivateBarrier,
        Self::CommitFirst,
        Self::LeasesOut,
        Self::FencesFirst,
        Self::RequestTable,
        Self::LowerRefused,
        Self::OldIncarnationEnds,
        Self::RecordFresh,
        Self::Fences,
        Self::SpaceFirst,
        Self::RequiredCopies,
        Self::Chain,
        Self::FloorIsDone,
        Self::AllDurable,
        Self::ActiveProcess,
        Self::Leases,
        Self::LeaseAfterRead,
        Self::LeaseLeftTold,
        Self::LeaseAfterStart,
        Self::ReadWaits,
        Self::Tombstones,
        Self::CleanWhole,
        Self::CopyFreezes,
    ];
}

/// Which rules are on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Rules {
    #[cfg(feature = "mutations")]
    off: Option<Rule>,
}

impl Rules {
    /// Leaves one out.
    #[cfg(feature = "mutations")]
    #[must_use]
    pub const fn without(rule: Rule) -> Self {
        Self { off: Some(rule) }
    }

    /// Whether it holds.
    #[must_use]
    #[inline]
    pub fn on(self, rule: Rule) -> bool {
        #[cfg(feature = "mutations")]
        return self.off != Some(rule);
        #[cfg(not(feature = "mutations"))]
        {
            let _ = rule;
            true
        }
    }
}
