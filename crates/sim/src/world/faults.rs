//! What goes wrong, and that it ends.

use super::{Ev, Fenced, World};
use crate::{Host, MS, Rng, SECOND};
use sheepdog_storelog::prepare;
use sheepdog_types::Vid;

impl World {
    /// One fault, and when the next one comes. Each is drawn for itself, so that leaving one out
    /// changes no other.
    pub(super) fn fault(&mut self) {
        if self.quiet {
            return;
        }
        let number = self.faults;
        self.faults += 1;
        let mut rng = Rng::new(self.plan.seed).fork_nth("fault", number);
        let pause = rng.between(self.plan.fault_pause / 4, self.plan.fault_pause * 2);
        self.queue.after(pause, Ev::Fault);
        let host = Host(rng.below(u64::from(self.plan.nodes)) as u16);
        let other = Host(rng.below(u64::from(self.plan.nodes)) as u16);
        let back = rng.between(10 * MS, 3 * SECOND);
        let kind = rng.below(26);
        if self.plan.without_faults.contains(&number) {
            return;
        }
        self.story.push((self.queue.now(), format!("fault {number} ({kind}) {host:?} {other:?}")));
        match kind {
            0..4 => {
                self.counts.one("fault: process killed");
                self.kill(host, false);
                self.queue.after(back, Ev::Start(host));
            }
            4..7 => {
                self.counts.one("fault: power loss");
                self.kill(host, true);
                self.queue.after(back, Ev::Start(host));
            }
            7 => {
                self.counts.one("fault: power loss of all");
                for number in 0..self.plan.nodes {
                    self.kill(Host(number), true);
                    let back = self.rng.between(10 * MS, 3 * SECOND);
                    self.queue.after(back, Ev::Start(Host(number)));
                }
            }
            8..11 if host != other => {
                self.counts.one("fault: partition");
                self.net.partition(&mut self.queue, host, other);
                self.suspect(host, other);
                self.queue.after(back, Ev::Heal);
            }
            11 => {
                self.counts.one("fault: node cut off");
                for number in 0..self.plan.nodes {
                    if Host(number) != host {
                        self.net.partition(&mut self.queue, host, Host(number));
                        self.suspect(host, Host(number));
                    }
                }
                self.queue.after(back, Ev::Heal);
            }
            12..14 if host != other => {
                self.counts.one("fault: one-way partition");
                self.net.cut(&mut self.queue, host, other);
                self.suspect(host, other);
                self.queue.after(back, Ev::Heal);
            }
            14..17 if host != other => {
                self.counts.one("fault: connection reset");
                self.net.reset(&mut self.queue, host, other);
            }
            17 => {
                self.counts.one("fault: process paused");
                if self.node(host).is_some() && !self.queue.is_paused(host) {
                    self.queue.pause(host);
                    self.queue.after(back, Ev::Heal);
                }
            }
            18 => {
                self.counts.one("fault: slow disk");
                for disk in self.machines[&host].disks.clone() {
                    if let Some(disk) = self.disks.get_mut(&disk) {
                        disk.slow = self.rng.between(2, 50);
                    }
                }
                self.queue.after(back, Ev::Heal);
            }
            19 => {
                let vid = *self.rng.pick(&self.vids);
                self.counts.one("fault: lock moved");
                self.controller.move_lock(vid);
                let lock = self.controller.lineages.vids[&vid].fence;
                self.fence(Fenced::Lock(vid, lock));
                self.publish_lineages();
            }
            20 if self.vids.len() < 4 => {
                let vid = Vid::new(self.vids.len() as u32 + 1).expect("small");
                self.counts.one("VDI created");
                self.controller.create(vid);
                self.vids.push(vid);
                self.publish_lineages();
            }
            21 | 22 => self.lose_disk(host),
            23 | 24 => self.go_back(host),
            _ => {
                self.counts.one("fault: clock runs wrong");
                let rate = crate::queue::TRUE_RATE;
                let rate = self.rng.between(rate / 100 * 95, rate / 100 * 105);
                self.queue.set_rate(host, rate);
            }
        }
    }

    /// Somebody notices that they do not reach each other.
    fn suspect(&mut self, a: Host, b: Host) {
        if self.cluster.is_some() {
            return;
        }
        let after = self.rng.between(50 * MS, 1500 * MS);
        self.queue.after(after, Ev::Unreachable(a, b));
    }

    /// While everything is everywhere all copies but one may be lost; none more until it is again.
    fn may_weaken(&self) -> bool {
        let certain = self.cluster.as_ref().is_none_or(|cluster| !cluster.went_back);
        certain && self.plan.copies >= 2 && self.all_clean()
    }

    /// A disk comes back empty.
    fn lose_disk(&mut self, host: Host) {
        if !self.may_weaken() {
            return;
        }
        self.counts.one("fault: disk wiped");
        self.kill(host, true);
        for id in self.machines[&host].disks.clone() {
            let superblock = self.superblock(id);
            if let Some(disk) = self.disks.get_mut(&id) {
                disk.wipe();
                for op in prepare(&superblock).expect("the plan's log is large enough") {
                    disk.run_now(&op);
                }
            }
            self.images.remove(&id);
            self.prepared_anew(id);
            self.restored.remove(&id);
        }
        let back = self.rng.between(10 * MS, 3 * SECOND);
        self.queue.after(back, Ev::Start(host));
    }

    /// A disk comes back as it once was, or is remembered as it is now.
    fn go_back(&mut self, host: Host) {
        let id = self.machines[&host].disks[0];
        let opened = self.recorded_serial(id);
        let shown = self.shown_serial(id);
        let mut went_back = None;
        match self.images.get(&id).map(|(then, _)| *then) {
            Some(then) if then < opened => {
                if !self.may_weaken() {
                    return;
                }
                self.counts.one("fault: disk back in time");
                self.kill(host, true);
                if let (Some(disk), Some((_, image))) =
                    (self.disks.get_mut(&id), self.images.get(&id))
                {
                    disk.restore(image);
                    self.restored.insert(id);
                    went_back = Some(then);
                }
            }
            _ => {
                self.kill(host, true);
                if let Some(disk) = self.disks.get(&id) {
                    self.images.insert(id, (shown, disk.snapshot()));
                }
            }
        }
        if let Some(serial) = went_back {
            self.show_serial(id, serial);
        }
        let back = self.rng.between(10 * MS, 3 * SECOND);
        self.queue.after(back, Ev::Start(host));
    }

    /// Everything works again, but for what is dead.
    pub(super) fn heal(&mut self) {
        self.net.heal_all(&mut self.queue);
        for number in 0..self.plan.nodes {
            if self.queue.is_paused(Host(number)) {
                self.queue.resume(Host(number));
            }
        }
        for disk in self.disks.values_mut() {
            disk.slow = 1;
        }
        if let Some(cluster) = &mut self.cluster {
            if self.quiet {
                cluster.registry.heal(&mut self.queue);
            }
        } else {
            self.queue.after(50 * MS, Ev::Reachable);
        }
    }
}
