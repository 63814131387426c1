// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package tdx

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"fmt"

	"github.com/coco-shim/coco/attestation"
)

// platform is what the PCK certificate says of the platform (PCK Certificate Profile, 1.3.5: SGX extensions).
type platform struct {
	fmspc    attestation.Hex // family, model, stepping, platform type: the key of the TCB info
	pceID    attestation.Hex
	svn      [16]byte // levels of the SGX TCB's components
	pceSVN   int
	instance attestation.Hex // absent from certificates of the processor CA
	flags    map[string]bool // dynamic_platform, cached_keys, smt_enabled; absent likewise
}

var (
	oidSGX = asn1.ObjectIdentifier{1, 2, 840, 113741, 1, 13, 1}
	// flagNames are the members of the configuration, by the last number of their id.
	flagNames = map[int]string{1: "dynamic_platform", 2: "cached_keys", 3: "smt_enabled"}
)

// Last numbers of the ids below oidSGX.
const (
	sgxTCB      = 2
	sgxPCEID    = 3
	sgxFMSPC    = 4
	sgxInstance = 6
	sgxConfig   = 7
	tcbPCESVN   = 17
	tcbCPUSVN   = 18
)

// item is one pair of an id and its value.
type item struct {
	ID    asn1.ObjectIdentifier
	Value asn1.RawValue
}

// readPlatform reads the SGX extension of a PCK certificate.
func readPlatform(c *x509.Certificate) (*platform, error) {
	for _, e := range c.Extensions {
		if e.Id.Equal(oidSGX) {
			p, err := parseSGX(e.Value)
			if err != nil {
				return nil, attestation.Fail(attestation.CodeMalformed, "pck_certificate.sgx_extensions",
					"the extension of Intel's certificate profile", "bytes that do not fit it", err)
			}
			return p, nil
		}
	}
	return nil, malformed("pck_certificate.sgx_extensions", "an extension "+oidSGX.String(), "none")
}

func parseSGX(der []byte) (*platform, error) {
	items, err := readItems(der, oidSGX)
	if err != nil {
		return nil, err
	}
	p := &platform{}
	for n, want := range map[int]struct {
		to   *attestation.Hex
		size int
	}{sgxPCEID: {&p.pceID, 2}, sgxFMSPC: {&p.fmspc, 6}, sgxInstance: {&p.instance, 16}} {
		v, ok := items[n]
		if !ok && n == sgxInstance {
			continue
		}
		var octets []byte
		if err := unmarshal(v, &octets); err != nil || len(octets) != want.size {
			return nil, fmt.Errorf("member %d is no octet string of %d bytes", n, want.size)
		}
		*want.to = octets
	}
	if err := p.readTCB(items[sgxTCB]); err != nil {
		return nil, err
	}
	return p, p.readFlags(items[sgxConfig])
}

// readTCB reads the 16 levels and the PCE's.
func (p *platform) readTCB(v asn1.RawValue) error {
	items, err := readItems(v.FullBytes, append(oidSGX[:len(oidSGX):len(oidSGX)], sgxTCB))
	if err != nil {
		return fmt.Errorf("TCB: %w", err)
	}
	for i := range p.svn {
		var n int
		if err := unmarshal(items[i+1], &n); err != nil || n < 0 || n > 0xff {
			return fmt.Errorf("TCB: component %d is no level from 0 to 255", i+1)
		}
		p.svn[i] = byte(n)
	}
	if err := unmarshal(items[tcbPCESVN], &p.pceSVN); err != nil || p.pceSVN < 0 || p.pceSVN > 0xffff {
		return fmt.Errorf("TCB: PCESVN is no level from 0 to 65535")
	}
	var cpu []byte
	if err := unmarshal(items[tcbCPUSVN], &cpu); err != nil || len(cpu) != len(p.svn) {
		return fmt.Errorf("TCB: CPUSVN is no octet string of %d bytes", len(p.svn))
	}
	return nil
}

func (p *platform) readFlags(v asn1.RawValue) error {
	if v.FullBytes == nil {
		return nil
	}
	items, err := readItems(v.FullBytes, append(oidSGX[:len(oidSGX):len(oidSGX)], sgxConfig))
	if err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	p.flags = map[string]bool{}
	for n, name := range flagNames {
		var on bool
		if v, ok := items[n]; ok {
			if err := unmarshal(v, &on); err != nil {
				return fmt.Errorf("configuration: %s is no boolean", name)
			}
			p.flags[name] = on
		}
	}
	return nil
}

// readItems reads pairs of ids below a parent, by the last number of the id. No id may come twice.
func readItems(der []byte, parent asn1.ObjectIdentifier) (map[int]asn1.RawValue, error) {
	var list []item
	if rest, err := asn1.Unmarshal(der, &list); err != nil || len(rest) > 0 {
		return nil, fmt.Errorf("is no list of ids and values (%d bytes left): %w", len(rest), err)
	}
	out := make(map[int]asn1.RawValue, len(list))
	for _, i := range list {
		last := len(i.ID) - 1
		if last != len(parent) || !i.ID[:last].Equal(parent) {
			return nil, fmt.Errorf("id %s is not below %s", i.ID, parent)
		}
		if _, twice := out[i.ID[last]]; twice {
			return nil, fmt.Errorf("id %s comes twice", i.ID)
		}
		out[i.ID[last]] = i.Value
	}
	return out, nil
}

// unmarshal reads one value as a whole. An absent value is an error.
func unmarshal(v asn1.RawValue, to any) error {
	rest, err := asn1.Unmarshal(bytes.Clone(v.FullBytes), to)
	if err == nil && len(rest) > 0 {
		err = fmt.Errorf("%d bytes are left", len(rest))
	}
	return err
}
