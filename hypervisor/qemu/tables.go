// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"fmt"
	"os"

	"github.com/coco-shim/coco/hypervisor"
)

// TablesFD is the descriptor on which a command line of Tables expects its end of the qtest socket.
const TablesFD = firstFD

// Tables makes the command line of a QEMU that runs nothing but shows, over the qtest protocol, the tables
// that it makes for the VM: those of ACPI and SMBIOS. It is the command line of Build, with these differences. The
// TEE's object is left out, since QEMU refuses to make it without KVM; the arguments contain its effects on the
// machine anyway. Boot files, host devices and host sockets are left out or replaced by null devices, and names
// are fixed: none of these are in the tables, so that the same tables have the same command line.
func Tables(spec hypervisor.VMSpec, binary string) []string {
	spec.ID = "tables"
	spec.NICs, spec.Blocks = append([]hypervisor.NIC(nil), spec.NICs...), append([]hypervisor.Block(nil), spec.Blocks...)
	for i := range spec.NICs {
		spec.NICs[i] = hypervisor.NIC{ID: fmt.Sprint("nic", i), MAC: fmt.Sprintf("02:00:00:00:00:%02x", i)}
	}
	for i := range spec.Blocks {
		spec.Blocks[i] = hypervisor.Block{ID: fmt.Sprint("block", i), ReadOnly: true}
	}
	return tables(spec, binary)
}

// tables is Tables with the names of the spec.
func tables(spec hypervisor.VMSpec, binary string) []string {
	b := &builder{spec: spec, tables: true}
	b.cmd.Argv = []string{binary}
	b.fd(&os.File{}) // TablesFD
	b.arg("-chardev", fmt.Sprintf("socket,id=qtest,fd=%d", TablesFD), "-qtest", "chardev:qtest", "-qtest-log", "none")
	b.build()
	return b.cmd.Argv
}
