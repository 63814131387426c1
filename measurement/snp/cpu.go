// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package snp

import (
	"fmt"
	"slices"
	"strings"
)

// Signature packs family, model and stepping as CPUID function 1 returns them in EAX (AMD
// publication 25481). A processor has it in RDX when it starts, so it is measured.
func Signature(family, model, stepping uint32) (uint32, error) {
	if family > 0xf+0xff || model > 0xff || stepping > 0xf {
		return 0, fmt.Errorf("cpu signature: family %d, model %d, stepping %d exceed 270, 255, 15", family, model, stepping)
	}
	low, high := family, uint32(0)
	if family > 0xf {
		low, high = 0xf, family-0xf
	}
	return high<<20 | model>>4<<16 | low<<8 | model&0xf<<4 | stepping, nil
}

// family is a row of CPU models that share one signature: versions of a model never differ in it.
type family struct {
	name      string
	signature uint32
	versions  int // name-v1 … name-v<versions> exist besides the bare name
	aliases   []string
}

// families are the AMD and Hygon models of QEMU up to 11.1. Checked against query-cpu-model-expansion
// of QEMU 7.2 and 10.0.2; 11.x adds versions of known families and EPYC-Turin.
var families = []family{
	{name: "EPYC", signature: 0x800f12, versions: 5, aliases: []string{"EPYC-IBPB"}},
	{name: "EPYC-Rome", signature: 0x830f10, versions: 5},
	{name: "EPYC-Milan", signature: 0xa00f11, versions: 4},
	{name: "EPYC-Genoa", signature: 0xa10f10, versions: 3},
	{name: "EPYC-Turin", signature: 0xb00f00, versions: 2},
	{name: "Dhyana", signature: 0x900f01, versions: 2},
	{name: "Opteron_G1", signature: 0xf61, versions: 1},
	{name: "Opteron_G2", signature: 0xf61, versions: 1},
	{name: "Opteron_G3", signature: 0x100f23, versions: 1},
	{name: "Opteron_G4", signature: 0x600f12, versions: 1},
	{name: "Opteron_G5", signature: 0x600f20, versions: 1},
	{name: "phenom", signature: 0x100f23, versions: 1},
	{name: "athlon", signature: 0x623, versions: 1},
	{name: "qemu64", signature: 0x60fb1, versions: 1},
}

var signatures = func() map[string]uint32 {
	m := make(map[string]uint32, 64)
	for _, f := range families {
		m[f.name] = f.signature
		for v := 1; v <= f.versions; v++ {
			m[fmt.Sprintf("%s-v%d", f.name, v)] = f.signature
		}
		for _, a := range f.aliases {
			m[a] = f.signature
		}
	}
	return m
}()

// ModelSignature returns the signature of a CPU model by QEMU's name for it. Models that take the
// host's identity are refused, since the digest would depend on the machine.
func ModelSignature(model string) (uint32, error) {
	if s, ok := signatures[model]; ok {
		return s, nil
	}
	switch model {
	case "":
		return 0, fmt.Errorf("no cpu model given; the digest depends on it")
	case "host", "max", "base":
		return 0, fmt.Errorf("cpu model %q has no fixed signature: the digest would depend on the host; name a model such "+
			"as EPYC-v4, or give the signature", model)
	}
	return 0, fmt.Errorf("cpu model %q is not known; give its signature instead, or one of %s", model,
		strings.Join(Models(), " "))
}

// Models returns the names that ModelSignature knows, sorted.
func Models() []string {
	names := make([]string, 0, len(signatures))
	for n := range signatures {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}
