// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package initdata

import "strings"

// Insecure lists the files of a document that switch on something insecure, for logs of the host: "insecure = true" at
// the top of aa.toml or azure.toml, and the policy's insecureUnsigned. It reads them as their owners write them; the
// guest reads them as TOML and JSON, and decides.
func (d *Document) Insecure() (files []string) {
	for _, name := range []string{FileAA, FileAzure} {
		if switchedOn(d.Data[name]) {
			files = append(files, name)
		}
	}
	if strings.Contains(d.Data[FilePolicy], `"insecureUnsigned":true`) { // in the one form that a guest takes
		files = append(files, FilePolicy)
	}
	return files
}

// switchedOn looks for the key among those before the first table.
func switchedOn(text string) bool {
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			return false
		}
		key, value, _ := strings.Cut(line, "=")
		if strings.Trim(key, " \t\"'") == "insecure" && strings.HasPrefix(strings.TrimSpace(value), "true") {
			return true
		}
	}
	return false
}
