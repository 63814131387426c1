// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package vmm

import "sync"

// Removals are the devices that the guest was asked to release, by the names that the VMM's events give them. The zero
// value is empty and ready.
type Removals struct {
	mu      sync.Mutex
	waiting map[string]chan struct{} // guarded by mu
}

// Expect returns a channel that is closed when the VMM reports that the device is gone. Calls for the same device
// before that return the same channel: an unplug that timed out is waited for again.
func (r *Removals) Expect(name string) <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	gone := r.waiting[name]
	if gone == nil {
		gone = make(chan struct{})
		if r.waiting == nil {
			r.waiting = make(map[string]chan struct{})
		}
		r.waiting[name] = gone
	}
	return gone
}

// Gone notes that the device is gone; one that is not expected to go is fine.
func (r *Removals) Gone(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if ch := r.waiting[name]; ch != nil {
		close(ch)
		delete(r.waiting, name)
	}
}
