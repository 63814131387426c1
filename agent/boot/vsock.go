// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"os"
	"path/filepath"
	"strings"
)

// virtioVsock is the device id of a socket device; virtio 1.2, section 5 "Device Types".
const virtioVsock = "0x0013"

// HasVsock tells whether the machine has a virtio socket device, with or without a driver.
func HasVsock() bool {
	ids, _ := filepath.Glob("/sys/bus/virtio/devices/*/device") // the pattern is valid
	for _, name := range ids {
		b, err := os.ReadFile(name)
		if err == nil && strings.TrimSpace(string(b)) == virtioVsock {
			return true
		}
	}
	return false
}
