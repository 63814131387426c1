// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package clh

import "strings"

// The VMM logs to its standard error, a message a line: "cloud-hypervisor: 1.2s: <vcpu0>
// ERROR:vmm/src/cpu.rs:1487 -- VCPU generated error: …".

const logPrefix = "\ncloud-hypervisor:"

// withoutWarnings returns a log without its warnings. They come with each start and do not explain an
// error.
func withoutWarnings(log string) string {
	var out strings.Builder
	for line := range strings.Lines(log) {
		if !strings.Contains(line, " WARN:") {
			out.WriteString(line)
		}
	}
	return out.String()
}

// vcpuError finds the error message of a failed virtual processor. The VMM then ends as if the guest had powered
// off.
func vcpuError(log string) string {
	const mark = "VCPU generated error: "
	_, text, ok := strings.Cut(log, mark)
	if !ok {
		return ""
	}
	text, _, _ = strings.Cut(text, logPrefix) // the message has several lines
	text = strings.Join(strings.Fields(text), " ")
	return printable(text[:min(len(text), maxReason)])
}
