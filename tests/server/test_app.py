def test_a_new_session_names_the_model_and_its_limits(client):
    reply = client.post("/api/v1/sessions")
    assert reply.status_code == 201
    assert reply.json()["model"]["name"] == "toy"
    assert reply.json()["limits"]["voxels"] > 0
