// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Azure says what the processes of a container may ask of the endpoints that Microsoft's sidecar for key release has
// (docs/azure.md). They are a part of the workload API. The zero value opens nothing.
type Azure struct {
	// Keys are released to the container: by the guest's own wrapping key, which the container does not see.
	Keys  []AzureKey `json:"keys,omitempty"`
	Calls []string   `json:"calls,omitempty"` // AzureCall… constants
	// MAA has the attestation services, as HOST or HOST:PORT, that a token for the container's own keys may come from.
	MAA []string `json:"maa,omitempty"`
}

// AzureKey is a key in a vault. All three must be asked for as they stand here.
type AzureKey struct {
	KID   string `json:"kid"`   // NAME, or NAME/VERSION
	Vault string `json:"vault"` // HOST or HOST:PORT
	MAA   string `json:"maa"`   // of the attestation service, as Vault
}

// Calls of Azure.Calls. With any of them the container can have keys released for itself, whatever Keys says: a report
// or a token with its own data is all that an attestation service and a vault want.
const (
	AzureRaw      = "attest-raw"      // a report of the processor
	AzureCombined = "attest-combined" // the same with its certificates
	AzureOwnKeys  = "maa-own-keys"    // a token for keys of the container
)

// Opens says whether the container may ask for anything.
func (a *Azure) Opens() bool { return len(a.Keys)+len(a.Calls) > 0 }

// azureProblems are those of Workload.Azure. The agent leaves them out, since it does not read these members.
func (p *Policy) azureProblems(out problems) problems {
	for i := range p.Containers {
		out.azure("containers["+strconv.Itoa(i)+"].workload.azure", &p.Containers[i].Workload.Azure)
	}
	return out
}

func (p *problems) azure(at string, a *Azure) {
	for i, k := range a.Keys {
		at := at + ".keys[" + strconv.Itoa(i) + "]"
		p.azureHost(at+".vault", k.Vault)
		p.azureHost(at+".maa", k.MAA)
		name, version, found := strings.Cut(k.KID, "/")
		if !isAzureWord(name) || found && !isAzureWord(version) {
			p.add(at+".kid", "%s is no NAME or NAME/VERSION of letters, digits and dashes", clip(k.KID))
		}
		if slices.Contains(a.Keys[:i], k) {
			p.add(at, "comes a second time")
		}
	}
	for _, c := range a.Calls {
		p.oneOf(at+".calls", c, AzureRaw, AzureCombined, AzureOwnKeys)
	}
	p.once(at+".calls", a.Calls)
	for i, m := range a.MAA {
		p.azureHost(at+".maa["+strconv.Itoa(i)+"]", m)
	}
	p.once(at+".maa", a.MAA)
	if slices.Contains(a.Calls, AzureOwnKeys) != (len(a.MAA) > 0) {
		p.add(at+".maa", "goes together with the call %q", AzureOwnKeys)
	}
}

// maxAzureName is how long a vault lets the name of a key be.
const maxAzureName = 127

func isAzureWord(s string) bool {
	return s != "" && len(s) <= maxAzureName && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && r != '-'
	})
}

// azureHost checks a host with or without a port. Requests name it, so the addresses of metadata services are refused.
func (p *problems) azureHost(at, text string) {
	host, port, found := strings.Cut(text, ":")
	n, err := strconv.ParseUint(port, 10, 16)
	if found && (err != nil || n == 0) || host == "" || len(host) > 253 ||
		strings.ContainsFunc(host, func(r rune) bool {
			return (r < '0' || r > '9') && (r < 'a' || r > 'z') && r != '-' && r != '.'
		}) {
		p.add(at, "%s is no HOST or HOST:PORT in lower case", clip(text))
		return
	}
	if a, err := netip.ParseAddr(host); err == nil && (a.IsLinkLocalUnicast() || a.IsLoopback() || a.IsUnspecified()) {
		p.add(at, "%s is no address of a service", clip(text))
	}
}
