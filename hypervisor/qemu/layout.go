// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"fmt"
	"sync"
)

// The fixed PCI skeleton: slots on the root bus of q35, where 0 is the host bridge and 0x1f the
// chipset. On TDX the tables that describe it are measured, so nothing here depends on the pod.
const (
	slotSerial = 0x02
	slotSCSI   = 0x03
	slotNICs   = 0x04 // maxNICs slots
	slotFiles  = 0x0c
	slotPorts  = 0x10 // maxPorts slots
	maxPorts   = 0x1f - slotPorts
)

// Names of fixed objects.
const (
	agentDevice = "agent0"
	scsiDevice  = "scsi0"
	scsiTargets = 255 // targets per virtio-scsi controller
)

func portID(n int) string { return fmt.Sprintf("rp%d", n) }

// portPath is the guest's PCI path of the device in port n: bridge slot, then device slot.
func portPath(n int) string { return fmt.Sprintf("%02x/00", slotPorts+n) }

// slots hands out the numbers 0 to size-1 of places to plug something in.
type slots struct {
	mu   sync.Mutex
	used map[int]string // guarded by mu; number to id
	size int
}

func newSlots(size int) *slots { return &slots{used: make(map[int]string), size: size} }

// take finds the lowest free place for id, which must not have one.
func (s *slots) take(id string) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	free := -1
	for n := range s.size {
		switch s.used[n] {
		case id:
			return 0, fmt.Errorf("id %q is plugged in already", id)
		case "":
			if free < 0 {
				free = n
			}
		}
	}
	if free < 0 {
		return 0, fmt.Errorf("all %d places are taken", s.size)
	}
	s.used[free] = id
	return free, nil
}

// find returns the place of id.
func (s *slots) find(id string) (int, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for n, u := range s.used {
		if u == id {
			return n, true
		}
	}
	return 0, false
}

func (s *slots) free(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.used, n)
}
