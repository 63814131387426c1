// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package entra gets bearer tokens for Azure's services: from the metadata service of the VM (a managed identity), or
// from Microsoft Entra for a token that Kubernetes has written to a file (workload identity).
//
// Both ways lead through the host's network, and the host sees the token: it is no secret from the platform's operator,
// and no key may rest on it alone.
package entra

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/coco-shim/coco/azure/azhttp"
)

// MetadataURL is the metadata service of each VM at Azure. It speaks HTTP, on a link-local address.
const MetadataURL = "http://169.254.169.254"

const (
	metadataVersion = "2018-02-01"
	maxToken        = 64 << 10
	assertionType   = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
)

// Metadata gets tokens of a managed identity.
type Metadata struct {
	Client *azhttp.Client
	// URL is MetadataURL, or that of a fake.
	URL string
	// ClientID names one of several identities; empty: the only one.
	ClientID string
}

// Token returns a bearer token for a resource such as https://vault.azure.net.
func (m Metadata) Token(ctx context.Context, resource string) (string, error) {
	q := url.Values{"api-version": {metadataVersion}, "resource": {resource}}
	if m.ClientID != "" {
		q.Set("client_id", m.ClientID)
	}
	a, err := m.Client.Do(ctx, azhttp.Request{
		Method: http.MethodGet, URL: strings.TrimRight(m.URL, "/") + "/metadata/identity/oauth2/token?" + q.Encode(),
		Header: map[string]string{"Metadata": "true"},
	})
	if err != nil {
		return "", err
	}
	return bearer(a.Body)
}

// Workload gets tokens by workload identity.
type Workload struct {
	Client *azhttp.Client
	// Authority is the URL of Entra: AZURE_AUTHORITY_HOST.
	Authority string
	Tenant    string // AZURE_TENANT_ID
	ClientID  string // AZURE_CLIENT_ID
	// Assertion reads AZURE_FEDERATED_TOKEN_FILE. It is called for each token, since the file rotates.
	Assertion func() ([]byte, error)
}

// Token returns a bearer token for a resource.
func (w Workload) Token(ctx context.Context, resource string) (string, error) {
	base, err := azhttp.Endpoint(w.Authority)
	if err != nil {
		return "", fmt.Errorf("entra: authority %w", err)
	}
	assertion, err := w.Assertion()
	if err != nil {
		return "", fmt.Errorf("entra: federated token: %w", err)
	}
	if len(assertion) > maxToken {
		return "", fmt.Errorf("entra: the federated token has more than %d bytes", maxToken)
	}
	form := url.Values{
		"grant_type": {"client_credentials"}, "client_id": {w.ClientID},
		"scope":                 {strings.TrimRight(resource, "/") + "/.default"},
		"client_assertion_type": {assertionType}, "client_assertion": {strings.TrimSpace(string(assertion))},
	}
	a, err := w.Client.Do(ctx, azhttp.Request{
		Method: http.MethodPost, URL: base + "/" + url.PathEscape(w.Tenant) + "/oauth2/v2.0/token",
		Header: map[string]string{"Content-Type": "application/x-www-form-urlencoded"}, Body: []byte(form.Encode()),
	})
	if err != nil {
		return "", err
	}
	return bearer(a.Body)
}

// bearer reads the token of an answer. Its expiry is not looked at: a token is got for each use.
func bearer(body []byte) (string, error) {
	var a struct {
		Token string `json:"access_token"`
		Type  string `json:"token_type"`
	}
	switch err := json.Unmarshal(body, &a); {
	case err != nil:
		return "", fmt.Errorf("bearer token: %w", err)
	case a.Type != "" && !strings.EqualFold(a.Type, "Bearer"):
		return "", fmt.Errorf("bearer token: the answer has a token of type %.40q", a.Type)
	case a.Token == "" || len(a.Token) > maxToken:
		return "", errors.New("bearer token: the answer has none, or a too long one")
	}
	for _, r := range a.Token { // b68token of RFC 6750: it goes into a header
		if r <= ' ' || r > '~' {
			return "", errors.New("bearer token: it has characters that no token has")
		}
	}
	return a.Token, nil
}
