// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"strings"
	"testing"
)

// A policy's part for Azure's endpoints names hosts and keys, and nothing that leads elsewhere.
func TestAzureMembers(t *testing.T) {
	key := AzureKey{KID: "pay/0123", Vault: "shop.vault.azure.net", MAA: "10.0.0.1:8443"}
	with := func(change func(*AzureKey)) Azure {
		k := key
		change(&k)
		return Azure{Keys: []AzureKey{k}}
	}
	for _, tc := range []struct {
		name string
		in   Azure
		want string // "": it is in order
	}{
		{"a key", with(func(*AzureKey) {}), ""},
		{"own keys", Azure{Calls: []string{AzureRaw, AzureCombined, AzureOwnKeys}, MAA: []string{"maa.example"}}, ""},
		{"a scheme", with(func(k *AzureKey) { k.Vault = "https://x" }), "keys[0].vault"},
		{"a path", with(func(k *AzureKey) { k.Vault = "x/y" }), "keys[0].vault"},
		{"a user", with(func(k *AzureKey) { k.MAA = "u@x" }), "keys[0].maa"},
		{"no host", with(func(k *AzureKey) { k.MAA = "" }), "keys[0].maa"},
		{"no port", with(func(k *AzureKey) { k.MAA = "x:0" }), "keys[0].maa"},
		{"upper case", with(func(k *AzureKey) { k.MAA = "X" }), "keys[0].maa"},
		{"metadata", with(func(k *AzureKey) { k.Vault = "169.254.169.254" }), "no address of a service"},
		{"loopback", with(func(k *AzureKey) { k.Vault = "127.0.0.1:1" }), "no address of a service"},
		{"a way out of the key", with(func(k *AzureKey) { k.KID = "../secrets" }), "keys[0].kid"},
		{"three parts", with(func(k *AzureKey) { k.KID = "a/b/c" }), "keys[0].kid"},
		{"an empty version", with(func(k *AzureKey) { k.KID = "a/" }), "keys[0].kid"},
		{"twice", Azure{Keys: []AzureKey{key, key}}, "keys[1]: comes a second time"},
		{"an unknown call", Azure{Calls: []string{"status"}}, "azure.calls"},
		{"own keys of nobody", Azure{Calls: []string{AzureOwnKeys}}, "azure.maa"},
		{"a service for nothing", Azure{Calls: []string{AzureRaw}, MAA: []string{"x"}}, "azure.maa"},
	} {
		p := &Policy{Containers: []Container{{Name: "c", Workload: Workload{Azure: tc.in}}}}
		err := p.azureProblems(nil).err()
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
		if !p.UsesWorkloadAPI() {
			t.Errorf("%s: it opens nothing", tc.name)
		}
	}
}
