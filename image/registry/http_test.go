// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"net/netip"
	"testing"
)

func TestAddressesThatNoRegistryHas(t *testing.T) {
	for _, a := range []string{
		"127.0.0.1", "::1", "0.0.0.0", "::", "169.254.169.254", "fe80::1", "224.0.0.1", "ff02::1", "fd00:ec2::254",
		"168.63.129.16", "100.100.100.200", "::ffff:168.63.129.16", "::ffff:127.0.0.1",
	} {
		if Forbidden(netip.MustParseAddr(a)) == nil {
			t.Errorf("%s is asked", a)
		}
	}
	for _, a := range []string{"192.0.2.1", "10.0.0.1", "168.63.129.17", "2001:db8::1", "100.100.100.1"} {
		if err := Forbidden(netip.MustParseAddr(a)); err != nil {
			t.Errorf("%s: %v", a, err)
		}
	}
}
