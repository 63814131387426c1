// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Command azkeys uses a vault as a program on Microsoft's client for Go does: it imports a key with a release policy,
// gets it, changes its policy and releases it. It reads what it needs as JSON from standard input, and prints what the
// client said.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azkeys"
)

// input has the URLs of the fakes, their CA and the time at which it is valid, and the key with its policies and token.
type input struct {
	Vault, Metadata, CA string
	Now                 time.Time
	Key                 []byte
	Policy, OtherPolicy json.RawMessage
	Token               string // of the attestation service
}

// output is what the client returned: the key's URL, the answer of a release for each wrapping, and the status of a
// release after the policy was changed.
type output struct {
	ID, Got  string
	Released map[string]string
	Refused  int
}

// metadata gets bearer tokens as a managed identity does.
type metadata struct{ url string }

// GetToken asks the metadata service. Scopes end in /.default there.
func (m metadata) GetToken(ctx context.Context, o policy.TokenRequestOptions) (azcore.AccessToken, error) {
	resource := o.Scopes[0][:len(o.Scopes[0])-len("/.default")]
	q := url.Values{"api-version": {"2018-02-01"}, "resource": {resource}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, m.url+"/metadata/identity/oauth2/token?"+q.Encode(), nil)
	if err != nil {
		return azcore.AccessToken{}, err
	}
	req.Header.Set("Metadata", "true")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return azcore.AccessToken{}, err
	}
	defer resp.Body.Close()
	var a struct {
		Token string `json:"access_token"`
	}
	err = json.NewDecoder(resp.Body).Decode(&a)
	return azcore.AccessToken{Token: a.Token, ExpiresOn: time.Now().Add(time.Hour)}, err
}

func main() {
	if err := run(context.Background(), os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "azkeys:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, r io.Reader, w io.Writer) error {
	var in input
	if err := json.NewDecoder(r).Decode(&in); err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(in.CA))
	c, err := azkeys.NewClient(in.Vault, metadata{in.Metadata}, &azkeys.ClientOptions{
		DisableChallengeResourceVerification: true, // a fake does not lie in Azure's domain
		ClientOptions: policy.ClientOptions{
			Retry: policy.RetryOptions{MaxRetries: -1},
			Transport: &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{
				RootCAs: roots, Time: func() time.Time { return in.Now },
			}}},
		},
	})
	if err != nil {
		return err
	}
	out, err := use(ctx, c, in)
	if err != nil {
		return err
	}
	return json.NewEncoder(w).Encode(out)
}

func use(ctx context.Context, c *azkeys.Client, in input) (out output, err error) {
	const name = "from-go"
	imported, err := c.ImportKey(ctx, name, azkeys.ImportKeyParameters{
		HSM: to.Ptr(true), KeyAttributes: &azkeys.KeyAttributes{Exportable: to.Ptr(true)},
		Key:           &azkeys.JSONWebKey{Kty: to.Ptr(azkeys.KeyTypeOctHSM), K: in.Key},
		ReleasePolicy: &azkeys.KeyReleasePolicy{EncodedPolicy: in.Policy},
	}, nil)
	if err != nil {
		return out, fmt.Errorf("import: %w", err)
	}
	got, err := c.GetKey(ctx, name, "", nil)
	if err != nil {
		return out, fmt.Errorf("get: %w", err)
	}
	out.ID, out.Got, out.Released = string(*imported.Key.KID), string(*got.Key.KID), map[string]string{}
	ask := azkeys.ReleaseParameters{TargetAttestationToken: &in.Token}
	for _, wrap := range azkeys.PossibleKeyEncryptionAlgorithmValues() {
		ask.Algorithm = &wrap
		r, err := c.Release(ctx, name, "", ask, nil)
		if err != nil {
			return out, fmt.Errorf("release by %s: %w", wrap, err)
		}
		out.Released[string(wrap)] = *r.Value
	}
	change := azkeys.UpdateKeyParameters{ReleasePolicy: &azkeys.KeyReleasePolicy{EncodedPolicy: in.OtherPolicy}}
	if _, err := c.UpdateKey(ctx, name, got.Key.KID.Version(), change, nil); err != nil {
		return out, fmt.Errorf("update: %w", err)
	}
	_, err = c.Release(ctx, name, "", ask, nil)
	var e *azcore.ResponseError
	if !errors.As(err, &e) {
		return out, fmt.Errorf("a release against the policy: %w", err)
	}
	out.Refused = e.StatusCode
	return out, nil
}
